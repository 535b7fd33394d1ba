"""The least time a chip can take: bytes that must move over its bandwidth, and operations over its peak.

Counted are matrix products and what attention and recurrences need; batch 1. Times of real programs are above both.
"""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from hypenet_jax.chips import CHIPS, Chip
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.cost import Work, decode_work, prefill_work

_NOTE = (
    "Computed, not measured: bytes that must move over a chip's bandwidth, or operations over its peak, whichever "
    "takes longer."
)
PRESENTATIONS = (
    Presentation(
        metric="prefill_seconds_floor",
        title="Roofline of prefill",
        note=_NOTE,
        unit="seconds",
        kind="table",
        section="Least times of chips",
    ),
    Presentation(
        metric="decode_seconds_floor",
        title="Roofline of decode, per token",
        note=_NOTE,
        unit="seconds",
        kind="table",
        section="Least times of chips",
    ),
)


def floors(
    name: str,
    config: ModelConfig,
    lengths: tuple[int, ...],
    chip: str,
    *,
    dtype: DTypeLike = jnp.bfloat16,
) -> Report:
    """Least seconds to read `length` tokens, and to write one after them, of a model by name.

    Returns:
      Rows "prefill_seconds_floor" and "decode_seconds_floor", labelled with the chip.
    Raises:
      ValueError: no such chip.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip {chip!r} is not known; there are {', '.join(CHIPS)}")
    report = Report()
    for length in lengths:
        for metric, work in (("prefill", prefill_work), ("decode", decode_work)):
            seconds = _seconds(work(config, length, dtype), CHIPS[chip])
            report = report.add(
                Row(f"{metric}_seconds_floor", name, seconds, 1, length, label=chip)
            )
    return report


def over_floors(report: Report) -> Report:
    """Rows "decode_over_floor" of a report of times and floors: how many times its floor each model took."""
    rows = []
    for floor in report.select("decode_seconds_floor").rows:
        taken = report.select("decode_seconds", floor.model, floor.length).rows
        rows += [
            dataclasses.replace(floor, metric="decode_over_floor", value=time.value / floor.value)
            for time in taken
        ]
    return Report(tuple(rows))


def _seconds(work: Work, chip: Chip) -> float:
    """The longer of moving and computing, which may overlap."""
    return max(work.bytes / chip.bandwidth, work.flops / chip.flops)
