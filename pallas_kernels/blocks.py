"""What a step of a Pallas grid sees of arrays whose axes have letters, as in their shapes."""

from typing import Any

import jax
from jax.experimental import pallas as pl


def block_specs(grid: str, axes: Any, arrays: Any) -> Any:
    """Of each array, one index of the axes that the grid walks, and all of every other.

    block_specs("N B", "B T N H", q) is BlockSpec((None, T, None, H), lambda n, b: (b, 0, n, 0)).

    Args:
      grid: letters of the grid's axes.
      axes: letters of the axes of every array: a tree like `arrays`, or a prefix of it.
      arrays: may be shapes.
    """

    def spec(letters: str, x: Any) -> pl.BlockSpec:
        places = [grid.split().index(a) if a in grid.split() else None for a in letters.split()]
        sizes = zip(places, x.shape, strict=True)
        return pl.BlockSpec(
            tuple(size if place is None else None for place, size in sizes),
            lambda *step: tuple(0 if place is None else step[place] for place in places),
        )

    return jax.tree.map(lambda a, part: jax.tree.map(lambda x: spec(a, x), part), axes, arrays)
