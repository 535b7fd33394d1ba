"""The search for the constant a of the log-length logit scale, and writing the best into an exported model."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.evals import Report, Row
from hypenet_jax.evals.cache import ResultCache
from hypenet_jax.evals.config import EvaluationConfig, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.quality import Entrant, needles, open_entrant, perplexity_at, tasks
from hypenet_jax.weights import CheckpointError
from hypenet_jax.weights.hf_config import from_hf, read_json

log = logging.getLogger("hypenet_jax")

PRESENTATIONS = (
    Presentation(
        metric="scale_sweep",
        title="The logit scale",
        note="What each value of attn_logits_scaling brings.",
        kind="list",
        best="scale_best",
    ),
)

# The label of no scaling.
NONE = "none"


def sweep(config: EvaluationConfig, mesh: Mesh, kept: ResultCache) -> Report:
    """One model with no scaling and with every constant a.

    Returns:
      Rows "scale_sweep", whose task is what was measured and whose label is the scale as a config.json writes it, and
      one row "scale_best" of the best; of equals the first one, so constants stand in the order of preference.
    Raises:
      CheckpointError: the best is to be written, and the folder's config.json has no such field.
    """
    asked = config.sweep
    if not asked.constants:
        return Report()
    one = swept_model(config)
    entrant, report = open_entrant(config, one, mesh), Report()
    kept = kept.of(entrant.fingerprint)
    for scale in (None, *(f"hype {a:g}" for a in asked.constants)):
        log.info("evaluate: %s with logit scale %s", one.label, scale)
        measured = functools.partial(_measured, config, entrant.scaled(scale), scale)
        report += kept(f"logit scale {scale}", measured)
    rows = report.select("scale_sweep").rows
    if not rows:
        return report
    best = best_of(rows, lower=asked.by == "perplexity")
    if asked.write and jax.process_index() == 0:
        write_scale(pathlib.Path(one.folder), best.label)
    runtime.meet("scale written")
    return report.add(dataclasses.replace(best, metric="scale_best"))


def swept_model(config: EvaluationConfig) -> ModelSource:
    """The model whose scale is searched."""
    label = config.sweep.model or config.models[-1].label
    return next(one for one in config.models if one.label == label)


def best_of(rows: Sequence[Row], *, lower: bool) -> Row:
    """The first of the best rows."""
    return min(rows, key=lambda row: row.value if lower else -row.value)


def write_scale(folder: pathlib.Path, scale: str | None) -> None:
    """Sets `attn_logits_scaling` of a HypeNet folder's config.json; "none" is null.

    Raises:
      CheckpointError: see `scaled_fields`.
    """
    path = folder / "config.json"
    fields = scaled_fields(path)
    fields["attn_logits_scaling"] = None if scale == NONE else scale
    from_hf(fields)
    beside = path.with_suffix(".json.new")
    beside.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
    log.info("%s: attn_logits_scaling is now %s", path, scale)


def scaled_fields(path: pathlib.Path) -> dict[str, Any]:
    """A config.json with a logit scale.

    Raises:
      CheckpointError: that of a Qwen3, which has none.
    """
    fields = read_json(path)
    if "attn_logits_scaling" not in fields:
        raise CheckpointError(
            f"{path} has no attn_logits_scaling that a scale could be written to; write that of a HypeNet"
        )
    return fields


def _measured(config: EvaluationConfig, entrant: Entrant, scale: str | None) -> Report:
    """The deciding number with this scale, as a row "scale_sweep"; failures stay as they are."""
    asked = config.sweep
    if asked.by == "needle":
        metric, found = "needle", needles(config, entrant, asked.length)
    elif asked.by == "ruler":
        metric, found = "ruler_mean", tasks(config, entrant, asked.length)
    else:
        metric, found = "perplexity", perplexity_at(config, entrant, (asked.length,))
    label = NONE if scale is None else scale
    rows = [
        dataclasses.replace(row, metric="scale_sweep", task=metric, label=label)
        for row in found.select(metric).rows
    ]
    return Report((*rows, *found.select("failed").rows))
