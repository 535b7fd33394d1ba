"""What a conversion achieved: needles, perplexity and speed of all its models, and the bounds they must meet."""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.config import HaloConfig
from hypenet_jax.convert.inputs import prepared_data
from hypenet_jax.convert.models import (
    decoder_of,
    decoder_shapes,
    decoder_shardings,
    load_teacher,
    student_config,
)
from hypenet_jax.convert.report import first_run, stage_rows, write_report
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import Prepared
from hypenet_jax.evals import (
    EvalModel,
    Report,
    Row,
    held_out,
    needle_accuracy,
    perplexity_by_length,
)
from hypenet_jax.evals.checks import Bound, Candidate, EvaluateConfig
from hypenet_jax.evals.present.results import Check
from hypenet_jax.evals.speed import efficiency
from hypenet_jax.generation.generate import generate
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.sharding import make_mesh
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.stage_output import load_params

log = logging.getLogger("hypenet_jax")

ROUNDS = 5


def evaluate(config: HaloConfig, *, stop: Callable[[int], bool] = lambda number: False) -> bool:
    """Measures, writes run_dir/report/{report.json, index.html}, prints the table.

    Args:
      stop: asked before every candidate; True raises Preempted.
    Returns:
      Whether all bounds hold; those that do not are named in the log.
    """
    asked = config.evaluation
    assert asked is not None
    subjects = {one.label: _subject(config, one) for one in asked.candidates}
    prepared = prepared_data(config.stages[0])
    report = _quality(config, asked, subjects, prepared, stop) + stage_rows(config)
    racing = [subjects[one.label] for one in asked.candidates if one.races]
    if racing:
        log.info("evaluate: prefill and decode times")
        report += efficiency(racing, asked.race_lengths, rounds=ROUNDS)
    report += _comparisons(asked, report)
    checks = [_check(bound, report) for bound in asked.bounds]
    samples = _samples(asked, subjects[asked.student], prepared)
    if jax.process_index() == 0:
        folder = pathlib.Path(config.run_dir) / "report"
        write_report(folder, config, report, checks, samples)
        _print(report, checks)
        print(f"report: {folder / 'index.html'}")
    runtime.meet("report written")
    return all(check.passed for check in checks)


def _print(report: Report, checks: list[Check]) -> None:
    print(report.table())
    for check in checks:
        print(
            f"{'ok    ' if check.passed else 'MISSED'} {check.name}: {check.value}, {check.bound}"
        )


def _subject(config: HaloConfig, candidate: Candidate) -> EvalModel:
    """A candidate with its weights; the teacher is that of the first run that has one."""
    if candidate.run is None:
        run = next(run for run in config.stages if run.teacher_folder is not None)
        decoder, params = load_teacher(run, make_mesh(run.mesh))
    else:
        run = config.stage(candidate.run)
        decoder = decoder_of(student_config(run), run)
        where = decoder_shardings(decoder, make_mesh(run.mesh))
        like = decoder_shapes(decoder)
        params, _ = load_params(run.final_of(run.name), run.name, like=like, shardings=where)
    if candidate.logit_scale is not None:
        scaled = with_logit_scale(decoder.config, LogLengthScale(candidate.logit_scale))
        decoder = dataclasses.replace(decoder, config=scaled)
    return EvalModel(candidate.label, decoder, params)


def _quality(
    config: HaloConfig,
    asked: EvaluateConfig,
    subjects: dict[str, EvalModel],
    prepared: Prepared,
    stop: Callable[[int], bool],
) -> Report:
    text, seed = prepared.tokens("heldout"), config.stages[0].seed
    first = asked.candidates[0]
    report = Report()
    for number, one in enumerate(asked.candidates):
        if stop(number):
            raise Preempted(f"stopped before evaluating {one.label}; the evaluation starts anew")
        log.info("evaluate: %s", one.label)
        subject = subjects[one.label]
        teacher = None if one is first else subjects[first.label]
        report += _held_out(config, asked, subject, prepared, teacher)
        if asked.catalogue is not None:
            for lengths, count in _counts(asked, one):
                report += needle_accuracy(
                    subject,
                    asked.catalogue,
                    text,
                    lengths,
                    num_needles=asked.needles,
                    count=count,
                    seed=seed,
                )
        if one.reads:
            report += perplexity_by_length(
                subject,
                text,
                asked.read_lengths,
                num_windows=asked.read_windows,
                num_targets=asked.read_targets,
            )
    return report


def _counts(asked: EvaluateConfig, candidate: Candidate) -> list[tuple[list[int], int]]:
    """Needle lengths with the number of sequences of each: fewer of the long ones."""
    short = [length for length in candidate.needle_lengths if length < asked.long_length]
    long = [length for length in candidate.needle_lengths if length >= asked.long_length]
    return [(short, asked.sequences), (long, asked.long_sequences)]


def _held_out(
    config: HaloConfig,
    asked: EvaluateConfig,
    subject: EvalModel,
    prepared: Prepared,
    teacher: EvalModel | None,
) -> Report:
    """Plain held-out numbers at the training length of stage 1; metric names say so."""
    data = first_run(config, AlignConfig).data
    size = data.sequences_per_step
    batches = heldout_batches(
        prepared, data.context_length, size, reset_documents=data.reset_documents
    )
    report = held_out(subject, itertools.islice(batches, asked.heldout_rows // size), teacher)
    return Report(
        tuple(dataclasses.replace(row, metric=f"heldout_{row.metric}") for row in report.rows)
    )


def _comparisons(asked: EvaluateConfig, report: Report) -> Report:
    """Every candidate's held-out perplexity against the teacher's, and what log scaling does to the needles."""
    teacher, rows = asked.candidates[0].label, []
    base = report.value("heldout_perplexity", teacher)
    for one in asked.candidates[1:]:
        gap = report.value("heldout_perplexity", one.label) / base - 1.0
        rows.append(Row("perplexity_gap", one.label, gap, 1))
        plain = [
            other
            for other in asked.candidates
            if other.run == one.run and other.logit_scale is None and one.logit_scale is not None
        ]
        for other in plain:
            for length in sorted(set(one.needle_lengths) & set(other.needle_lengths)):
                gain = report.value("needle", one.label, length) - report.value(
                    "needle", other.label, length
                )
                rows.append(Row("needle_gain", one.label, gain, 1, length))
    return Report(tuple(rows))


def _check(bound: Bound, report: Report) -> Check:
    value = report.value(bound.metric, bound.model, bound.length)
    at = "" if bound.length is None else f" at {bound.length}"
    name = f"{bound.metric} of {bound.model}{at}"
    return Check(name, f"{value:.4g}", bound.stated(), bound.holds(value))


def _samples(
    asked: EvaluateConfig, subject: EvalModel, prepared: Prepared
) -> list[tuple[str, str]]:
    """Each prompt and how the student continues it, greedily."""
    assert isinstance(subject.decoder, Decoder)
    tokenizer = prepared.tokenizer()
    samples = []
    for prompt in asked.prompts:
        tokens = tokenizer.encode(prompt)[None]
        new = generate(
            subject.decoder,
            subject.params,
            tokens,
            max_new_tokens=asked.sample_tokens,
            stop_token=tokenizer.end_id,
        )
        samples.append((prompt, tokenizer.decode(new[0])))
    return samples
