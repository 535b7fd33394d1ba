"""The losses on a mesh: which axes cut the vocabulary and the tokens, and what that asks of them.

Each device holds some rows of the head (of both heads) and some of the tokens. Between the devices
of one part of the tokens go a few float32 numbers per token, for the softmax, and the sum of their
gradients toward hidden; the head's gradient stays where its rows are. Between the parts of the
tokens goes the sum of the head's gradients, once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from pallas_kernels import dispatch


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """Names of the mesh axes that cut the vocabulary and the tokens; empty where none does."""

    vocabulary: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


WHOLE = MeshAxes()


def mesh_axes(op: str, axes: MeshAxes, vocabulary: int) -> MeshAxes:
    """Those of the named axes that cut anything: none without a mesh, or of size 1.

    Raises:
      UnsupportedError: the mesh has no axis of that name, an axis is named twice, or the vocabulary
        does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return WHOLE
    named = axes.vocabulary + axes.tokens
    for axis in named:
        if axis not in mesh.axis_names:
            have = ", ".join(mesh.axis_names)
            raise dispatch.UnsupportedError(f"{op}: no mesh axis {axis!r}; the mesh has {have}")
        if named.count(axis) > 1:
            raise dispatch.UnsupportedError(f"{op}: mesh axis {axis!r} is named twice")
    parts = _parts(axes.vocabulary)
    if vocabulary % parts:
        raise dispatch.UnsupportedError(
            f"{op}: a vocabulary of {vocabulary} does not divide over mesh axis "
            f"{' x '.join(axes.vocabulary)} of size {parts}; "
            f"sizes below it that work: {', '.join(map(str, _divisors(vocabulary, parts)))}"
        )
    cutting = (
        tuple(axis for axis in names if mesh.shape[axis] > 1)
        for names in (axes.vocabulary, axes.tokens)
    )
    return MeshAxes(*cutting)


def over_shards(
    function: Callable[[Any, Any], tuple[Any, Any]], axes: MeshAxes, tokens: Any, rows: Any
) -> tuple[Any, Any]:
    """`function(tokens, rows)` on every device, with its part of the tokens and of the rows.

    Args:
      function: gives back arrays by token, and arrays by row of the vocabulary.
      tokens: arrays whose first axis is tokens; padded with zeros where they do not divide.
      rows: arrays whose first axis is the vocabulary.
    """
    if axes == WHOLE:
        return function(tokens, rows)
    length = jax.tree.leaves(tokens)[0].shape[0]
    whole = length + -length % _parts(axes.tokens)
    specs = PartitionSpec(axes.tokens), PartitionSpec(axes.vocabulary)
    # Nothing is differentiated through it, so nothing depends on JAX knowing what varies where.
    run = jax.shard_map(function, in_specs=specs, out_specs=specs, check_vma=False)
    by_token, by_row = run(jax.tree.map(lambda x: padded(x, whole), tokens), rows)
    return jax.tree.map(lambda x: x[:length], by_token), by_row


def summed(x: Float[Array, "_ D"], axes: tuple[str, ...]) -> Float[Array, "_ D"]:
    """Over the devices along these axes; within `over_shards`."""
    return jax.lax.psum(x, axes) if axes else x


def padded(x: Shaped[Array, "T *D"], length: int) -> Shaped[Array, "S *D"]:
    """Zeros after the last token."""
    return jnp.pad(x, [(0, length - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _parts(axes: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def _divisors(size: int, limit: int) -> list[int]:
    return [n for n in range(1, limit) if size % n == 0]
