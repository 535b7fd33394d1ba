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
        metric="prefill_seconds_roofline",
        title="Roofline of prefill",
        note=_NOTE,
        unit="seconds",
        kind="table",
        section="Least times of chips",
    ),
    Presentation(
        metric="decode_seconds_roofline",
        title="Roofline of decode, per token",
        note=_NOTE,
        unit="seconds",
        kind="table",
        section="Least times of chips",
    ),
)


def roofline_rows(
    name: str,
    config: ModelConfig,
    lengths: tuple[int, ...],
    chip: str,
    *,
    dtype: DTypeLike = jnp.bfloat16,
) -> Report:
    """Least seconds to read `length` tokens, and to write one after them, of a model by name.

    Returns:
      Rows "prefill_seconds_roofline" and "decode_seconds_roofline", labelled with the chip.
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
                Row(f"{metric}_seconds_roofline", name, seconds, 1, length, label=chip)
            )
    return report


def relative_to_roofline(report: Report) -> Report:
    """Rows "decode_relative_to_roofline": the measured time per token over the least one, where a report has both."""
    return Report(
        tuple(
            dataclasses.replace(
                least, metric="decode_relative_to_roofline", value=time.value / least.value
            )
            for least in report.select("decode_seconds_roofline").rows
            for time in report.select("decode_seconds", least.model, least.length).rows
        )
    )


def _seconds(work: Work, chip: Chip) -> float:
    """The longer of moving and computing, which may overlap."""
    return max(work.bytes / chip.bandwidth, work.flops / chip.flops)
