"""The least time a chip can take: bytes that must move over its bandwidth, and operations over its peak.

Counted are matrix products and what attention and recurrences need; batch 1. Times of real programs are above both.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hypenet_jax.chips import CHIPS, Chip
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.mixers import LightningSpec, MixerSpec, SoftmaxSpec

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


@dataclasses.dataclass(frozen=True)
class Work:
    """Bytes that move and operations that run, at the least."""

    bytes: int
    flops: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, chip: Chip) -> float:
        """What the chip needs: the longer of the two, which may overlap."""
        return max(self.bytes / chip.bandwidth, self.flops / chip.flops)


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
            seconds = work(config, length, dtype).seconds(CHIPS[chip])
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


def decode_work(config: ModelConfig, length: int, dtype: DTypeLike) -> Work:
    """One token after `length` others: all weights and all that is remembered are read once."""
    size = jnp.dtype(dtype).itemsize
    weights = matrix_numbers(config)
    mixers = (_decode_work(spec, length, size) for spec in config.mixers)
    return sum(mixers, Work(weights * size, 2 * weights))


def prefill_work(config: ModelConfig, length: int, dtype: DTypeLike) -> Work:
    """A text of `length` tokens, and the logits after it; weights are read once."""
    size, head = jnp.dtype(dtype).itemsize, config.vocab_size * config.d_model
    weights = matrix_numbers(config)
    mixers = (_prefill_work(spec, length, size) for spec in config.mixers)
    flops = 2 * (length * (weights - head) + head)
    return sum(mixers, Work(weights * size, flops))


def matrix_numbers(config: ModelConfig) -> int:
    """Parameters that a token is multiplied with: all but the embedding, where the head is not the same."""
    shapes = jax.eval_shape(functools.partial(init_params, Decoder(config)), jax.random.key(0))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    return total if config.tie_embeddings else total - config.vocab_size * config.d_model


def _decode_work(spec: MixerSpec, length: int, size: int) -> Work:
    match spec:
        case SoftmaxSpec():
            read = 2 * length * spec.num_kv_heads * spec.head_dim * size
            return Work(read, 4 * length * spec.num_heads * spec.head_dim)
        case LightningSpec():
            memory = spec.num_heads * spec.head_dim**2  # float32, read and written
            return Work(2 * 4 * memory, 4 * memory)


def _prefill_work(spec: MixerSpec, length: int, size: int) -> Work:
    match spec:
        case SoftmaxSpec():
            written = 2 * length * spec.num_kv_heads * spec.head_dim * size
            return Work(written, 2 * length**2 * spec.num_heads * spec.head_dim)
        case LightningSpec():
            memory = spec.num_heads * spec.head_dim**2
            return Work(4 * memory, 4 * length * memory)
