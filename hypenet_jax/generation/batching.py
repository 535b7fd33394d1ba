"""Rows of many lengths in batches of a few static shapes.

Rows are padded on the left to a power of two: every width is compiled once, and the end of a row is that of its batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Key

from hypenet_jax import axes
from hypenet_jax.generation.decode import fold_rows
from hypenet_jax.generation.prefill import PaddedRows, TokenRow, left_padded
from hypenet_jax.sharding import num_parts

# Of one forward pass on a device: rows get fewer as they get longer, so memory and time stay about the same.
TOKENS_PER_BATCH = 8192
SHORTEST = 32


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows and their shape: `width` tokens, `size` rows of which those after the first len(rows) are fillers."""

    width: int
    size: int
    rows: tuple[int, ...]

    def stack(self, rows: Sequence[TokenRow]) -> PaddedRows:
        """The rows, padded on the left, and 1 for each of their tokens, 0 for padding; fillers repeat the last row."""
        return left_padded([rows[row] for row in self.order], self.width)

    def keys(self, seed: int, draws: Sequence[int]) -> Key[Array, "B"]:
        """fold_in(key(seed), draws[row]) for each row, whatever it is batched with; fillers repeat the last row."""
        return fold_rows(jax.random.key(seed), np.asarray([draws[row] for row in self.order]))

    @property
    def order(self) -> list[int]:
        """Indices of all rows of the batch, fillers included."""
        return [*self.rows, *[self.rows[-1]] * (self.size - len(self.rows))]


def batches_by_width(
    lengths: Sequence[int], tokens_per_batch: int = TOKENS_PER_BATCH, *, width: int | None = None
) -> Iterator[Batch]:
    """Every row once, the longest first, in one shape per width.

    On a mesh the size of a batch is a multiple of the parts into which the mesh cuts it.

    Args:
      tokens_per_batch: per part; a longer row is a batch by itself.
      width: of all batches; None: the powers of two from SHORTEST on.
    """
    parts = batch_parts()
    widths: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        widths.setdefault(width or power_of_two(max(lengths[row], SHORTEST)), []).append(row)
    for wide, rows in widths.items():
        needed = -(-len(rows) // parts)
        needed = needed if width else power_of_two(needed)
        size = parts * max(1, min(tokens_per_batch // wide, needed))
        for first in range(0, len(rows), size):
            yield Batch(wide, size, tuple(rows[first : first + size]))


def batch_parts() -> int:
    """Into how many parts the mesh cuts a batch."""
    return num_parts(axes.BATCH, jax.sharding.get_abstract_mesh())


def power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
