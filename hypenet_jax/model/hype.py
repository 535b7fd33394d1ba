"""HyPE: rotary positions for the recurrent layers, log-length logit scaling for the softmax layers.

Source: arXiv 2601.22156 (HyPE); rotary embedding arXiv 2104.09864.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax.axes import Angles, Positions
from hypenet_jax.model.rope_scaling import RopeScaling


@dataclasses.dataclass(frozen=True)
class LogLengthScale:
    """Factor on the softmax logits that grows with the position: s(t) = log(t + a) / log(a), s(0) = 1.

    It counters the dilution of the softmax over long contexts, at inference only. The base a is at least 2; the
    denominator uses its integer part, as the official code does.
    Source: arXiv 2601.22156; the published configurations write it "hype a".
    """

    base: float

    def __post_init__(self) -> None:
        if self.base < 2:
            raise ValueError(f"the logit-scale constant a must be at least 2, got {self.base}")

    def at(self, positions: Positions) -> Float[Array, "B T"]:
        """The factor of every position, float32: bfloat16 could not tell far positions apart."""
        return jnp.log(positions.astype(jnp.float32) + self.base) / math.log(int(self.base))


LogitScale: TypeAlias = LogLengthScale | float | None
"""Factor on the logits: by position, a constant, or None for 1."""


def logit_scale_from_hf(value: Any) -> LogitScale:
    """attn_logits_scaling of a config.json: null, a constant, "hype" (a = 362) or "hype 500"; else a ValueError."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value <= sys.float_info.max:
        return float(value)
    words = value.split() if isinstance(value, str) else []
    if words[:1] != ["hype"] or len(words) > 2:
        raise ValueError(f'{value!r} is none of null, a positive number, "hype", "hype 500"')
    base = float(words[1]) if len(words) == 2 else 362.0  # as in the official code
    if not math.isfinite(base):
        raise ValueError(f"{value!r}: the constant must be finite")
    return LogLengthScale(base)


def logit_scale_to_hf(scale: LogitScale) -> str | float | None:
    """The inverse of `logit_scale_from_hf`."""
    return f"hype {scale.base!r}".removesuffix(".0") if isinstance(scale, LogLengthScale) else scale


# Part of what `jax.jit` caches by: a function traced inside and outside is traced twice.
_rounds_tables = jax.make_user_context(False)


@contextlib.contextmanager
def rounded_tables() -> Iterator[None]:
    """Inside, rotary frequencies and decay slopes are rounded to bfloat16, as in stages 1 and 2 of the official code.

    With 128 dimensions and base 1e6 an angle is then 0.6 rad off at position 511; slopes of 32 heads are by 0.14 %.
    """
    with _rounds_tables(True):
        yield


def table(values: Float[Array, " M"]) -> Float[Array, " M"]:
    """These float32 constants, rounded inside `rounded_tables`."""
    return values.astype(jnp.bfloat16).astype(jnp.float32) if _rounds_tables.value else values


def rotary_angles(
    positions: Positions, head_dim: int, theta: float | None, scaling: RopeScaling | None = None
) -> Angles | None:
    """Angle of each position and frequency: t * theta^(-2j / H), j = 0 .. H/2 - 1, in radians; None without a base.

    The frequencies are those of `scaling` where there is one.

    Positions reach a million and bfloat16 merges neighbours past 256, so angles stay float32 until sine and cosine.
    """
    if theta is None:
        return None
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = jnp.power(jnp.float32(theta), -exponent)
    if scaling is not None:
        frequencies = scaling.frequencies(frequencies, theta)
    return positions.astype(jnp.float32)[..., None] * table(frequencies)[None, None, :]
