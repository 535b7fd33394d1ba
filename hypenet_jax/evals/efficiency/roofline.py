"""The least time a chip can take: bytes that must move over its bandwidth, and operations over its peak.

Counted are matrix products and what attention and recurrences need; batch 1. Times of real programs are above both.
"""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
from jax.typing import DTypeLike

from hypenet_jax.chips import CHIPS
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.cost import decode_work, prefill_work

_table = functools.partial(
    Presentation,
    note="Computed, not measured: bytes that must move over a chip's bandwidth, or operations over its peak, whichever "
    "takes longer.",
    unit="seconds",
    kind="table",
    section="Least times of chips",
)
PRESENTATIONS = (
    _table(metric="prefill_seconds_roofline", title="Roofline of prefill"),
    _table(metric="decode_seconds_roofline", title="Roofline of decode, per token"),
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
    rows = []
    programs = (("prefill", prefill_work), ("decode", decode_work))
    for length, (program, work_of) in itertools.product(lengths, programs):
        work = work_of(config, length, dtype)
        # Moving and computing may overlap.
        least = max(work.bytes / CHIPS[chip].bandwidth, work.flops / CHIPS[chip].flops)
        rows.append(Row(f"{program}_seconds_roofline", name, least, 1, length, label=chip))
    return Report(tuple(rows))


def relative_to_roofline(report: Report) -> Report:
    """Rows "decode_relative_to_roofline": the measured time per token over the least one, where a report has both."""
    metric = "decode_relative_to_roofline"
    rows = (
        dataclasses.replace(least, metric=metric, value=time.value / least.value)
        for least in report.select("decode_seconds_roofline").rows
        for time in report.select("decode_seconds", least.model, least.length).rows
    )
    return Report(tuple(rows))
