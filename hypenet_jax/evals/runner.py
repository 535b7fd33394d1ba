"""Models in folders, measured and compared: quality of each, the search for a logit scale, speed and memory."""

import functools
import itertools
import logging

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.evals import Report
from hypenet_jax.evals.cache import ResultCache, attempt, kept_rows
from hypenet_jax.evals.config import EvaluationConfig, ModelSource
from hypenet_jax.evals.harness.evaluator import harness_scores
from hypenet_jax.evals.present.write import write_suite
from hypenet_jax.evals.quality import (
    Entrant,
    needles,
    open_entrant,
    open_model,
    perplexities,
    tasks,
)
from hypenet_jax.evals.roofline import floors
from hypenet_jax.evals.speed import efficiency
from hypenet_jax.evals.suite_checks import check_suite
from hypenet_jax.evals.sweep import sweep
from hypenet_jax.generation.model import model_fingerprint
from hypenet_jax.sharding import make_mesh, on_mesh

log = logging.getLogger("hypenet_jax")


def measure(config: EvaluationConfig) -> Report:
    """Measures every model, prints the table and writes `config.out`: report.jsonl and index.html.

    What cannot be measured, such as a length that the text does not fill, is a row "failed" that says why. A suite that
    was cut off goes on after the last measurement that it finished.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: see `check_suite` and `open_entrant`.
    """
    check_suite(config)
    mesh, kept, report = make_mesh(config.mesh), kept_rows(config), Report()
    with on_mesh(mesh):
        for one in config.models:
            log.info("evaluate: %s", one.label)
            entrant = open_entrant(config, one, mesh)
            report += _quality(config, one, entrant, kept.of(entrant.fingerprint))
        report += sweep(config, mesh, kept) + _race(config, mesh, kept)
    if jax.process_index() == 0:
        print(report.table())
        write_suite(config, report)
    runtime.meet("report written")
    kept.clear()
    return report


def _quality(
    config: EvaluationConfig, one: ModelSource, entrant: Entrant, kept: ResultCache
) -> Report:
    """What is asked of this model."""
    report = Report()
    if one.reads:
        read = functools.partial(perplexities, config, entrant)
        report += kept(f"perplexity of {one.label}", read)
    if not one.searches:
        return report
    needle_lengths = () if config.needle is None else config.needle.lengths
    for search, lengths in ((needles, needle_lengths), (tasks, config.ruler.lengths)):
        for length in lengths:
            found = functools.partial(search, config, entrant, length)
            report += kept(f"{search.__name__} of {one.label} at {length}", found)
    scores = functools.partial(harness_scores, config, one, entrant)
    report += kept(f"harness of {one.label}", scores)
    return report


def _race(config: EvaluationConfig, mesh: Mesh, kept: ResultCache) -> Report:
    racing = [one for one in config.models if one.races]
    if not racing or not config.race.lengths:
        return Report()
    log.info("evaluate: speed and memory of %s", [one.label for one in racing])
    subjects = [open_model(config, one, mesh) for one in racing]
    kept = kept.of(*(model_fingerprint(one.decoder, one.params) for one in subjects))
    report = Report()
    for one, chip in itertools.product(subjects, config.race.chips):
        report += floors(one.name, one.decoder.config, config.race.lengths, chip)
    for length in config.race.lengths:
        reads = length <= config.race.longest_prefill
        times = functools.partial(
            efficiency, subjects, [length], rounds=config.race.rounds, prefill=reads
        )
        timed = functools.partial(attempt, subjects[0].name, "speed", length, times)
        report += kept(f"speed at {length}", timed)
    return report
