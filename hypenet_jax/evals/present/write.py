"""What a suite leaves: report.jsonl, a page to look at, and where it is asked for a Markdown document."""

import math
import pathlib

from hypenet_jax.convert.report import curve_of, layer_scores
from hypenet_jax.evals import Report
from hypenet_jax.evals.config import Claim, EvaluationConfig
from hypenet_jax.evals.present.markdown import write_document
from hypenet_jax.evals.present.page import write_page
from hypenet_jax.evals.present.parts import length_text
from hypenet_jax.evals.present.results import Check, Results
from hypenet_jax.halo.select import read_selection


def write_suite(config: EvaluationConfig, report: Report) -> None:
    """Writes all files of a suite and says where the page lies."""
    folder = pathlib.Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.jsonl").write_text(report.to_json_lines(), encoding="utf-8")
    checks = tuple(check(claim, report) for claim in config.claims)
    write_page(folder / "index.html", _results(config, report, checks))
    if config.document is not None:
        write_document(config, config.document, report, checks)
    print(f"report: {folder / 'index.html'}")


def check(claim: Claim, report: Report) -> Check:
    """What the measured numbers say of a claim; one that was not measured does not hold."""
    bound, wanted = claim.bound, claim.bound.stated(">=", "<=")
    try:
        value = report.value(bound.metric, bound.model, bound.length)
        if claim.minus is not None:
            value -= report.value(bound.metric, *claim.minus)
        if claim.over is not None:
            value /= report.value(bound.metric, *claim.over)
    except KeyError:
        return Check(claim.text, "not measured", wanted, False)
    return Check(claim.text, f"{value:.3g}", wanted, bound.holds(value))


def _results(config: EvaluationConfig, report: Report, checks: tuple[Check, ...]) -> Results:
    models = tuple(one.label for one in config.models)
    runs = _conversion(config)
    chosen = [path for path in runs if (path / "selection.json").is_file()]
    return Results(
        title="Long contexts" if config.document is None else config.document.title,
        lead=f"{'; '.join(models)}. Measured by this run.",
        models=models,
        summary=_summary(config, report, checks),
        report=report,
        chance=None if config.needle is None else 1 / config.needle.catalogue.entries,
        curves=tuple(curve_of(path) for path in runs if (path / "metrics.jsonl").is_file()),
        selection=layer_scores(read_selection(chosen[0] / "selection.json")) if chosen else (),
        checks=checks,
    )


def _conversion(config: EvaluationConfig) -> list[pathlib.Path]:
    """Folders of the stages, in the order in which they ended."""
    if config.conversion is None:
        return []
    names = ("metrics.jsonl", "selection.json")
    found = [path for name in names for path in pathlib.Path(config.conversion).glob(f"*/{name}")]
    return list(dict.fromkeys(p.parent for p in sorted(found, key=lambda p: p.stat().st_mtime)))


def _summary(
    config: EvaluationConfig, report: Report, checks: tuple[Check, ...]
) -> tuple[tuple[str, str], ...]:
    """The headline: how far it went, what held, and how much faster than the first model the others are."""
    measured = Report(tuple(row for row in report.rows if row.metric != "failed"))
    tiles = [("longest context", length_text(max(measured.lengths, default=0)))]
    if checks:
        tiles.append(("statements that hold", f"{sum(c.passed for c in checks)} of {len(checks)}"))
    for metric, what in (("prefill_speedup", "prefill"), ("decode_speedup", "decode")):
        rows = [row for row in report.select(metric).rows if math.isfinite(row.value)]
        if rows:
            far = max(rows, key=lambda row: row.length or 0)
            against = f"{what} at {length_text(far.length or 0)} against {config.models[0].label}"
            tiles.append((against, f"{far.value:.1f}\u00d7 as fast"))
    failed = sum(row.count for row in report.select("failed").rows)
    return (*tiles, ("samples that failed", f"{failed}"))
