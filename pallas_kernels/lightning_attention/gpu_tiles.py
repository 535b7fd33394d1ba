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


class Decay(NamedTuple):
    """How the state decays; in a kernel, references to it."""

    segments: Segments | None  # None: one segment, no padding
    log: Float[Array, "N"]


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of threads: part of the state of one head, and the tokens of one row.

    `start` is the first token of a chunk.
    """

    plan: GpuPlan
    segments: Segments | None
    log_decay: Float[Array, ""]
    part: Int[Array, ""]

    @classmethod
    def here(cls, plan: GpuPlan, decay: Decay) -> "Block":
        """The one at this step of the grid (parts, heads, spans, rows)."""
        return cls(plan, decay.segments, decay.log[pl.program_id(1)], pl.program_id(0))

    def inner(
        self, start: Int[Array, ""], *, backward: bool
    ) -> tuple[Float[Array, "C C"], Float[Array, "C"]]:
        """Factors, with the scale of the outputs, for what the queries of a chunk see: from token to
        token, or 0 (columns receive: keys, if backward), and from the state before the chunk to a token.

        Without segments those of every chunk are those at start 0.
        """
        count, order = self.counts_through(start), jnp.arange(self.plan.chunk)
        gaps, seen = count[None, :] - count[:, None], order[None, :] >= order[:, None]
        if backward:
            gaps, seen = -gaps, order[None, :] <= order[:, None]
        entering = self.decay_factor(count - self.count_before(start))
        if self.segments is not None:
            segment = self.segments.segment[pl.ds(start + 1, self.plan.chunk)]
            seen = seen & (segment[None, :] == segment[:, None])
            entering = jnp.where(self.belongs(start, start), entering, 0.0)
        within = jnp.where(seen, self.decay_factor(gaps), 0.0)
        return self.plan.scale * within, self.plan.scale * entering

    def outer(self, start: Int[Array, ""]) -> tuple[Float[Array, "C"], Float[Array, ""]]:
        """Factors for the state after a chunk: from a token, and from the state before the chunk."""
        count, end = self.counts_through(start), start + self.plan.chunk
        before, after = self.count_before(start), self.count_before(end)
        leaving, across = self.decay_factor(after - count), self.decay_factor(after - before)
        if self.segments is not None:
            leaving = jnp.where(self.belongs(start, end), leaving, 0.0)
            same = self.segments.segment[start] == self.segments.segment[end]
            across = jnp.where(same, across, 0.0)
        return leaving, across

    def decay_factor(self, steps: Int[Array, "*S"]) -> Float[Array, "*S"]:
        """exp(log_decay * steps). Steps are clamped before exp: what is masked afterwards must not overflow."""
        return jnp.exp2(LOG2_E * self.log_decay * jnp.maximum(steps, 0).astype(jnp.float32))

    def count_before(self, token: Int[Array, ""]) -> Int[Array, ""]:
        """Real tokens before a token."""
        if self.segments is None:
            return jnp.minimum(token, self.plan.length)
        return self.segments.real_before[token]

    def counts_through(self, start: Int[Array, ""]) -> Int[Array, "C"]:
        """Real tokens up to and with each token of a chunk."""
        if self.segments is None:
            return jnp.minimum(start + 1 + jnp.arange(self.plan.chunk), self.plan.length)
        return self.segments.real_before[pl.ds(start + 1, self.plan.chunk)]

    def is_real(self, start: Int[Array, ""], counts: Int[Array, "C"]) -> Bool[Array, "C"]:
        """Which tokens of a chunk are no padding."""
        if self.segments is None:
            return start + jnp.arange(self.plan.chunk) < self.plan.length
        return counts > self.segments.real_before[pl.ds(start, self.plan.chunk)]

    def belongs(self, start: Int[Array, ""], boundary: Int[Array, ""]) -> Bool[Array, "C"]:
        """Whether the tokens of a chunk are of the segment that is open at a boundary."""
        if self.segments is None:
            return jnp.full((self.plan.chunk,), True)
        segment = self.segments.segment
        return segment[pl.ds(start + 1, self.plan.chunk)] == segment[boundary]

    def terms(self, x: Float[Array, "..."], dtype: Any) -> list[Float[Array, "..."]]:
        """What stands for a float32 tile in products with tokens: itself, or where those are bfloat16 as
        many `terms` of that type, whose sum is close to it.

        The first are cut, not rounded: to round single numbers, for what is left of them, takes a GPU
        eight times as long as to round pairs.
        """
        if dtype == jnp.float32:
            return [x]
        found = []
        for _ in range(self.plan.terms - 1):
            bits = jax.lax.bitcast_convert_type(x, jnp.int32) & -0x10000
            cut = jax.lax.bitcast_convert_type(bits, jnp.float32)
            found.append(cut.astype(dtype))
            x = x - cut
        return [*found, x.astype(dtype)]

    def product(
        self,
        a: list[Float[Array, "..."]],
        b: list[Float[Array, "..."]],
        contracted: tuple[int, int],
        onto: Float[Array, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Product into float32 of two sums of terms, added onto a tile one by one: the matrix unit adds
        as it multiplies."""
        dot = functools.partial(contract_on_gpu, over=contracted, interpret=self.plan.interpret)
        added = [dot(x, y) for x, y in itertools.product(a, b)]
        return functools.reduce(jnp.add, added if onto is None else [onto, *added])

    def read_tokens(
        self, ref: Ref, start: Int[Array, ""], real: Bool[Array, "C"], *, own: bool = False
    ) -> Float[Array, "C H"]:
        """A chunk of a head, or only the block's own columns of it."""
        tokens, columns = start + jnp.arange(self.plan.chunk), self._columns(own)
        mask = real[:, None] & (columns < self.plan.width)[None, :]
        return triton.load(ref.at[tokens[:, None], columns[None, :]], mask=mask, other=0.0)

    def write_tokens(self, ref: Ref, start: Int[Array, ""], x: Float[Array, "V C"]) -> None:
        """Writes a tile that has the tokens as columns."""
        tokens, columns = start + jnp.arange(self.plan.chunk), self._columns(own=True)
        mask = (columns < self.plan.width)[:, None] & (tokens < self.plan.length)[None, :]
        triton.store(ref.at[tokens[None, :], columns[:, None]], x.astype(ref.dtype), mask=mask)

    def read_state(
        self, ref: Ref, *, transposed: bool = False, only_if: Bool[Array, ""] | bool = True
    ) -> Float[Array, "V H"]:
        """The block's columns of a state (rows, if transposed) as rows."""
        at, inside = self._state(ref, transposed)
        return triton.load(at, mask=inside & only_if, other=0.0)

    def write_state(self, ref: Ref, x: Float[Array, "V H"]) -> None:
        """Writes rows as the block's columns of a state."""
        at, inside = self._state(ref, transposed=False)
        triton.store(at, x, mask=inside)

    def _state(self, ref: Ref, transposed: bool) -> tuple[Any, Bool[Array, "V H"]]:
        """Where the block's part of a state is, as its rows, and what of it is inside."""
        own, every = self._columns(own=True)[:, None], self._columns(own=False)[None, :]
        at = ref.at[own, every] if transposed else ref.at[every, own]
        return at, (own < self.plan.width) & (every < self.plan.width)

    def _columns(self, own: bool) -> Int[Array, "H"]:
        """Those of a tile: some may be past the head's width."""
        if own:
            return self.part * self.plan.part + jnp.arange(self.plan.part)
        return jnp.arange(self.plan.columns)
