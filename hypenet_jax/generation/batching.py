"""Rows of many lengths in batches of a few static shapes.

Rows are padded on the left to a power of two: every width is compiled once, and the end of a row is that of its batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from hypenet_jax.evals.model import TOKENS_PER_BATCH, batch_parts
from hypenet_jax.generation.prefill import left_padded

TokenRow: TypeAlias = Int[np.ndarray, " _"]

SHORTEST = 32


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows and their shape: `width` tokens, `size` rows of which those after the first len(rows) are fillers."""

    width: int
    size: int
    rows: tuple[int, ...]

    def stack(
        self, rows: Sequence[TokenRow]
    ) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
        """The rows, padded on the left, and 1 for each of their tokens, 0 for padding; fillers repeat the last row."""
        return left_padded([rows[row] for row in self._order], self.width)

    def keys(self, seed: int, draws: Sequence[int]) -> Key[Array, "B"]:
        """fold_in(key(seed), draws[row]) for each row, whatever it is batched with; fillers repeat the last row."""
        numbers = jnp.asarray([draws[row] for row in self._order])
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)

    @property
    def _order(self) -> list[int]:
        return [*self.rows, *[self.rows[-1]] * (self.size - len(self.rows))]


def batches_by_width(
    lengths: Sequence[int], tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[Batch]:
    """Every row once, the longest first, in one shape per width (rows of a mesh: a multiple of its batch parts)."""
    parts = batch_parts()
    widths: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        widths.setdefault(power_of_two(max(lengths[row], SHORTEST)), []).append(row)
    for width, rows in widths.items():
        size = min(parts * tokens_per_batch // width, power_of_two(len(rows)))
        size = max(parts, size // parts * parts)
        for first in range(0, len(rows), size):
            yield Batch(width, size, tuple(rows[first : first + size]))


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
