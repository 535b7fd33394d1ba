"""Tiles of one block of threads in the Triton kernels of lightning attention: how a call is cut up,
what is read, multiplied and written, and how memory fades in between.

Arrays stay in HBM as they are: tokens past the end, padding, and columns past a head's width are
masked where they are read and written.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

Ref = Any  # an array of Pallas, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut: `spans` of `chunks` chunks of `chunk` tokens, the last ones short."""

    batch: int
    length: int
    heads: int
    width: int
    chunk: int
    chunks: int
    spans: int
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


class Marks(NamedTuple):
    """Documents and padding, read before each token t: S is one more than the tokens of all
    spans."""

    real_before: Int[Array, "B S"]  # how many real tokens
    document: Int[Array, "B S"]  # of the last real token


class Decays(NamedTuple):
    """Factors by which memory fades around a chunk; the scale of the outputs is in the first two.

    Rows of `within` are the tokens that receive: queries, or if backward keys.
    """

    within: Float[Array, "C C"]  # from token to token; 0 where one does not see the other
    entering: Float[Array, "C"]  # from the memory before the chunk to a token
    leaving: Float[Array, "C"]  # from a token to the memory after the chunk
    across: Float[Array, ""]  # from the memory before the chunk to that after it
    real: Bool[Array, "C"]  # which tokens are not padding


def decays(
    marks: Marks | None,
    decay: Float[Array, ""],
    start: Int[Array, ""],
    plan: Plan,
    *,
    backward: bool,
) -> Decays:
    count, end = counts_through(marks, start, plan), start + plan.chunk
    before, after = count_before(marks, start, plan), count_before(marks, end, plan)
    order = jnp.arange(plan.chunk)
    gaps, seen = count[:, None] - count[None, :], order[:, None] >= order[None, :]
    if backward:
        gaps, seen = -gaps, order[:, None] <= order[None, :]
    within, across = fade(decay, gaps), fade(decay, after - before)
    entering = jnp.where(belongs(marks, start, start, plan), fade(decay, count - before), 0.0)
    leaving = jnp.where(belongs(marks, start, end, plan), fade(decay, after - count), 0.0)
    if marks is not None:
        document = marks.document[pl.ds(start + 1, plan.chunk)]
        seen = seen & (document[:, None] == document[None, :])
        across = jnp.where(marks.document[start] == marks.document[end], across, 0.0)
    return Decays(
        within=plan.scale * jnp.where(seen, within, 0.0),
        entering=plan.scale * entering,
        leaving=leaving,
        across=across,
        real=is_real(marks, start, count, plan),
    )


def fade(decay: Float[Array, ""], steps: Int[Array, "*S"]) -> Float[Array, "*S"]:
    """Steps are clamped before exp: what is masked afterwards must not overflow."""
    return jnp.exp(decay * jnp.maximum(steps, 0).astype(jnp.float32))


def count_before(marks: Marks | None, token: Int[Array, ""], plan: Plan) -> Int[Array, ""]:
    """Real tokens before a token."""
    return jnp.minimum(token, plan.length) if marks is None else marks.real_before[token]


def counts_through(marks: Marks | None, start: Int[Array, ""], plan: Plan) -> Int[Array, "C"]:
    """Real tokens up to and with each token of a chunk."""
    if marks is None:
        return jnp.minimum(start + 1 + jnp.arange(plan.chunk), plan.length)
    return marks.real_before[pl.ds(start + 1, plan.chunk)]


def is_real(
    marks: Marks | None, start: Int[Array, ""], counts: Int[Array, "C"], plan: Plan
) -> Bool[Array, "C"]:
    if marks is None:
        return start + jnp.arange(plan.chunk) < plan.length
    return counts > marks.real_before[pl.ds(start, plan.chunk)]


def belongs(
    marks: Marks | None, start: Int[Array, ""], boundary: Int[Array, ""], plan: Plan
) -> Bool[Array, "C"]:
    """Whether the tokens of a chunk are of the document that is open at a boundary."""
    if marks is None:
        return jnp.full((plan.chunk,), True)
    return marks.document[pl.ds(start + 1, plan.chunk)] == marks.document[boundary]


def chunks_here(span: Int[Array, ""], plan: Plan) -> Int[Array, ""]:
    return jnp.minimum(plan.chunks, pl.cdiv(plan.length, plan.chunk) - span * plan.chunks)


def product(
    a: Float[Array, "..."], b: Float[Array, "..."], contracted: tuple[int, int], plan: Plan
) -> Float[Array, "..."]:
    """Product into float32. Tokens as stored are exact; what was computed from them is float32, and
    where the tokens are narrower it is split into `terms` parts of their type."""
    if a.dtype == b.dtype:
        return _dot(a, b, contracted, plan)
    if a.dtype == jnp.float32:
        pairs = [(part, b) for part in _parts(a, b.dtype, plan.terms)]
    else:
        pairs = [(a, part) for part in _parts(b, a.dtype, plan.terms)]
    return functools.reduce(jnp.add, (_dot(*pair, contracted, plan) for pair in pairs))


def _parts(x: Float[Array, "..."], dtype: Any, terms: int) -> list[Float[Array, "..."]]:
    parts = []
    for _ in range(terms):
        parts.append(x.astype(dtype))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def _dot(
    a: Float[Array, "..."], b: Float[Array, "..."], contracted: tuple[int, int], plan: Plan
) -> Float[Array, "..."]:
    precision = None
    if a.dtype == jnp.float32:
        # Three TF32 products; the host that interprets has no such unit, and none is needed.
        three = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        precision = jax.lax.Precision.HIGHEST if plan.interpret else three
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _columns(plan: Plan) -> tuple[Any, Bool[Array, "H"]]:
    """Where the columns of a head are, and which of a tile's are the head's."""
    inside = jnp.arange(plan.columns) < plan.width
    if plan.columns == plan.width:
        return pl.ds(0, plan.columns), inside
    # A slice past the end is refused where its start is a Python number; the mask keeps it inside.
    return pl.ds(jnp.zeros((), jnp.int32), plan.columns), inside


def read_tokens(
    ref: Ref, start: Int[Array, ""], real: Bool[Array, "C"], plan: Plan
) -> Float[Array, "C H"]:
    columns, inside = _columns(plan)
    mask = real[:, None] & inside[None, :]
    return triton.load(ref.at[pl.ds(start, plan.chunk), columns], mask=mask, other=0.0)


def write_tokens(ref: Ref, start: Int[Array, ""], x: Float[Array, "C H"], plan: Plan) -> None:
    columns, inside = _columns(plan)
    mask = (start + jnp.arange(plan.chunk) < plan.length)[:, None] & inside[None, :]
    triton.store(ref.at[pl.ds(start, plan.chunk), columns], x.astype(ref.dtype), mask=mask)


def read_memory(
    ref: Ref, plan: Plan, only_if: Bool[Array, ""] | bool = True
) -> Float[Array, "H H"]:
    columns, inside = _columns(plan)
    mask = inside[:, None] & inside[None, :] & only_if
    return triton.load(ref.at[columns, columns], mask=mask, other=0.0)


def write_memory(ref: Ref, x: Float[Array, "H H"], plan: Plan) -> None:
    columns, inside = _columns(plan)
    triton.store(ref.at[columns, columns], x, mask=inside[:, None] & inside[None, :])
