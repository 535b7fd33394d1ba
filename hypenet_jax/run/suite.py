"""Models in folders, measured and compared: quality of each, the search for a logit scale, speed and memory."""

import functools
import itertools
import logging

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.evals import Report
from hypenet_jax.evals.config import ModelFolder, SuiteConfig
from hypenet_jax.evals.efficiency import efficiency
from hypenet_jax.evals.floors import floors
from hypenet_jax.run.harness import check_harness, harness_scores
from hypenet_jax.run.quality import Entrant, attempt, needles, open_entrant, perplexities, tasks
from hypenet_jax.run.scale_sweep import sweep
from hypenet_jax.run.suite_page import write_suite
from hypenet_jax.sharding import make_mesh, on_mesh

log = logging.getLogger("hypenet_jax")


def measure(config: SuiteConfig) -> Report:
    """Measures every model, prints the table and writes `config.out`: report.jsonl and index.html.

    What cannot be measured, such as a length that the text does not fill, is a row "failed" that says why.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: see `check_harness` and `open_entrant`.
    """
    check_harness(config)
    mesh, report = make_mesh(config.mesh), Report()
    with on_mesh(mesh):
        for one in config.models:
            log.info("evaluate: %s", one.label)
            report += _quality(config, one, open_entrant(config, one, mesh))
        report += sweep(config, mesh) + _race(config, mesh)
    if jax.process_index() == 0:
        print(report.table())
        write_suite(config, report)
    runtime.meet("report written")
    return report


def _quality(config: SuiteConfig, one: ModelFolder, entrant: Entrant) -> Report:
    """What is asked of this model."""
    report = perplexities(config, entrant) if one.reads else Report()
    if one.searches and config.needle is not None:
        for length in config.needle.lengths:
            report += needles(config, entrant, length)
    if one.searches:
        for length in config.ruler.lengths:
            report += tasks(config, entrant, length)
        report += harness_scores(config, one, entrant)
    return report


def _race(config: SuiteConfig, mesh: Mesh) -> Report:
    racing = [one for one in config.models if one.races]
    if not racing or not config.race.lengths:
        return Report()
    log.info("evaluate: speed and memory of %s", [one.label for one in racing])
    subjects = [open_entrant(config, one, mesh).subject for one in racing]
    report = Report()
    for one, chip in itertools.product(subjects, config.race.chips):
        report += floors(one.name, one.decoder.config, config.race.lengths, chip)
    for length in config.race.lengths:
        reads = length <= config.race.longest_prefill
        times = functools.partial(
            efficiency, subjects, [length], rounds=config.race.rounds, prefill=reads
        )
        report += attempt(subjects[0].name, "speed", length, times)
    return report
