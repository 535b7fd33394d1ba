"""Tiles of one block of threads in the Triton kernels of lightning attention: how a call is cut up,
what is read, multiplied and written, and how state decays in between.

Arrays stay in HBM as they are: tokens past the end, padding, and columns past a head's width are
masked where they are read and written.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.products import contract_on_gpu

Ref = Any  # an array of Pallas, read and written by index
LOG2_E = 1.4426950408889634


@dataclasses.dataclass(frozen=True)
class GpuPlan:
    """How one call is cut: `spans` of `chunks` chunks of `chunk` tokens, the last ones short, and
    the columns of a state in `parts`."""

    batch: int
    length: int
    heads: int
    width: int
    chunk: int
    chunks: int
    spans: int
    parts: int
    scale: float
    terms: int
    interpret: bool

    @property
    def tokens(self) -> int:
        """Tokens of a full span."""
        return self.chunk * self.chunks

    @property
    def columns(self) -> int:
        """Columns of a tile: a power of two, and what the matrix units take at least."""
        return max(16, pl.next_power_of_2(self.width))

    @property
    def part(self) -> int:
        """Columns of a state that one block of threads owns."""
        return self.columns // self.parts


class Segments(NamedTuple):
    """Segment and padding, as they are before each token t: S is one more than the tokens of all
    spans."""

    real_before: Int[Array, "B S"]  # how many real tokens
    segment: Int[Array, "B S"]  # of the last real token


class Inner(NamedTuple):
    """Factors, with the scale of the outputs, for what the queries of a chunk see."""

    within: Float[Array, "C C"]  # from token to token, or 0; columns receive: keys, if backward
    entering: Float[Array, "C"]  # from the state before the chunk to a token


class Outer(NamedTuple):
    """Factors for the state after a chunk."""

    leaving: Float[Array, "C"]  # from a token
    across: Float[Array, ""]  # from the state before the chunk


def inner(
    packed: Segments | None,
    log_decay: Float[Array, ""],
    start: Int[Array, ""],
    plan: GpuPlan,
    *,
    backward: bool,
) -> Inner:
    """Without packed segments those of every chunk are those at start 0."""
    count, order = counts_through(packed, start, plan), jnp.arange(plan.chunk)
    gaps, seen = count[None, :] - count[:, None], order[None, :] >= order[:, None]
    if backward:
        gaps, seen = -gaps, order[None, :] <= order[:, None]
    entering = decay_factor(log_decay, count - count_before(packed, start, plan))
    if packed is not None:
        segment = packed.segment[pl.ds(start + 1, plan.chunk)]
        seen = seen & (segment[None, :] == segment[:, None])
        entering = jnp.where(belongs(packed, start, start, plan), entering, 0.0)
    return Inner(
        plan.scale * jnp.where(seen, decay_factor(log_decay, gaps), 0.0), plan.scale * entering
    )


def outer(
    packed: Segments | None, log_decay: Float[Array, ""], start: Int[Array, ""], plan: GpuPlan
) -> Outer:
    """Decay factors of the tokens of a chunk up to its end, and of the state across it."""
    count, end = counts_through(packed, start, plan), start + plan.chunk
    before, after = count_before(packed, start, plan), count_before(packed, end, plan)
    leaving, across = (
        decay_factor(log_decay, after - count),
        decay_factor(log_decay, after - before),
    )
    if packed is not None:
        leaving = jnp.where(belongs(packed, start, end, plan), leaving, 0.0)
        across = jnp.where(packed.segment[start] == packed.segment[end], across, 0.0)
    return Outer(leaving, across)


def decay_factor(log_decay: Float[Array, ""], steps: Int[Array, "*S"]) -> Float[Array, "*S"]:
    """exp(log_decay * steps). Steps are clamped before exp: what is masked afterwards must not overflow."""
    return jnp.exp2(LOG2_E * log_decay * jnp.maximum(steps, 0).astype(jnp.float32))


def count_before(packed: Segments | None, token: Int[Array, ""], plan: GpuPlan) -> Int[Array, ""]:
    """Real tokens before a token."""
    return jnp.minimum(token, plan.length) if packed is None else packed.real_before[token]


def counts_through(
    packed: Segments | None, start: Int[Array, ""], plan: GpuPlan
) -> Int[Array, "C"]:
    """Real tokens up to and with each token of a chunk."""
    if packed is None:
        return jnp.minimum(start + 1 + jnp.arange(plan.chunk), plan.length)
    return packed.real_before[pl.ds(start + 1, plan.chunk)]


def is_real(
    packed: Segments | None, start: Int[Array, ""], counts: Int[Array, "C"], plan: GpuPlan
) -> Bool[Array, "C"]:
    """Which tokens of a chunk are no padding."""
    if packed is None:
        return start + jnp.arange(plan.chunk) < plan.length
    return counts > packed.real_before[pl.ds(start, plan.chunk)]


def belongs(
    packed: Segments | None, start: Int[Array, ""], boundary: Int[Array, ""], plan: GpuPlan
) -> Bool[Array, "C"]:
    """Whether the tokens of a chunk are of the segment that is open at a boundary."""
    if packed is None:
        return jnp.full((plan.chunk,), True)
    return packed.segment[pl.ds(start + 1, plan.chunk)] == packed.segment[boundary]


def chunks_here(span: Int[Array, ""], plan: GpuPlan) -> Int[Array, ""]:
    """Number of chunks of a span; the last span may have fewer."""
    return jnp.minimum(plan.chunks, pl.cdiv(plan.length, plan.chunk) - span * plan.chunks)


def terms(x: Float[Array, "..."], dtype: Any, plan: GpuPlan) -> list[Float[Array, "..."]]:
    """What stands for a float32 tile in products with tokens: itself, or where those are bfloat16 as
    many `terms` of that type, whose sum is close to it.

    The first are cut, not rounded: to round single numbers, for what is left of them, takes a GPU
    eight times as long as to round pairs.
    """
    if dtype == jnp.float32:
        return [x]
    found = []
    for _ in range(plan.terms - 1):
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & -0x10000
        cut = jax.lax.bitcast_convert_type(bits, jnp.float32)
        found.append(cut.astype(dtype))
        x = x - cut
    return [*found, x.astype(dtype)]


def product(
    a: list[Float[Array, "..."]],
    b: list[Float[Array, "..."]],
    contracted: tuple[int, int],
    plan: GpuPlan,
    onto: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Product into float32 of two sums of terms, added onto a tile one by one: the matrix unit adds
    as it multiplies."""
    dot = functools.partial(contract_on_gpu, over=contracted, interpret=plan.interpret)
    added = [dot(x, y) for x, y in itertools.product(a, b)]
    return functools.reduce(jnp.add, added if onto is None else [onto, *added])


def read_tokens(
    ref: Ref,
    start: Int[Array, ""],
    real: Bool[Array, "C"],
    plan: GpuPlan,
    part: Int[Array, ""] | None = None,
) -> Float[Array, "C H"]:
    """A chunk of a head, or of a part of its columns."""
    tokens, columns = start + jnp.arange(plan.chunk), _columns(plan, part)
    mask = real[:, None] & (columns < plan.width)[None, :]
    return triton.load(ref.at[tokens[:, None], columns[None, :]], mask=mask, other=0.0)


def write_tokens(
    ref: Ref, start: Int[Array, ""], x: Float[Array, "V C"], plan: GpuPlan, part: Int[Array, ""]
) -> None:
    """Writes a tile that has the tokens as columns."""
    tokens, columns = start + jnp.arange(plan.chunk), _columns(plan, part)
    mask = (columns < plan.width)[:, None] & (tokens < plan.length)[None, :]
    triton.store(ref.at[tokens[None, :], columns[:, None]], x.astype(ref.dtype), mask=mask)


def read_state(
    ref: Ref,
    plan: GpuPlan,
    part: Int[Array, ""],
    *,
    transposed: bool = False,
    only_if: Bool[Array, ""] | bool = True,
) -> Float[Array, "V H"]:
    """The columns of a part (rows, if transposed) as rows."""
    at, inside = _state(ref, plan, part, transposed)
    return triton.load(at, mask=inside & only_if, other=0.0)


def write_state(ref: Ref, x: Float[Array, "V H"], plan: GpuPlan, part: Int[Array, ""]) -> None:
    """Stores one part of a recurrent state, in the layout [V H]."""
    at, inside = _state(ref, plan, part, transposed=False)
    triton.store(at, x, mask=inside)


def _state(
    ref: Ref, plan: GpuPlan, part: Int[Array, ""], transposed: bool
) -> tuple[Any, Bool[Array, "V H"]]:
    """Where a part of a state is, as its rows, and what of it is inside."""
    own, all_of = _columns(plan, part)[:, None], _columns(plan, None)[None, :]
    at = ref.at[own, all_of] if transposed else ref.at[all_of, own]
    return at, (own < plan.width) & (all_of < plan.width)


def _columns(plan: GpuPlan, part: Int[Array, ""] | None) -> Int[Array, "H"]:
    """Those of a tile: some may be past the head's width."""
    if part is None:
        return jnp.arange(plan.columns)
    return part * plan.part + jnp.arange(plan.part)
