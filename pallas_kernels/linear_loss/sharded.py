"""The losses on a mesh that shards the vocabulary and the tokens; `linear_cross_entropy` says what is exchanged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.linear_loss.reference import Heads, Tokens
from pallas_kernels.mesh import UNSHARDED, AxisNames, MeshAxes, num_shards


def sharding_axes(op: str, axes: MeshAxes, vocabulary: int) -> MeshAxes:
    """Those of the named axes that shard anything: none without a mesh, or of size 1.

    Raises:
      UnsupportedError: the mesh has no axis of that name, an axis is named twice, or the vocabulary
        does not divide.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return UNSHARDED
    named, shards = axes.vocabulary + axes.tokens, num_shards(axes.vocabulary)
    for axis in named:
        if named.count(axis) > 1:
            raise UnsupportedError(f"{op}: mesh axis {axis!r} is named twice")
    if vocabulary % shards:
        divisors = (str(n) for n in range(1, shards) if vocabulary % n == 0)
        raise UnsupportedError(
            f"{op}: a vocabulary of {vocabulary} does not divide over mesh axis "
            f"{' x '.join(axes.vocabulary)} of size {shards}; "
            f"sizes below it that work: {', '.join(divisors)}"
        )
    return MeshAxes(*(tuple(axis for axis in names if num_shards((axis,)) > 1) for names in axes))


def over_shards(
    function: Callable[[Tokens, Heads], tuple[Any, Any]],
    axes: MeshAxes,
    tokens: Tokens,
    heads: Heads,
) -> tuple[Any, Any]:
    """`function` on every device, with its part of the tokens and of the vocabulary's rows.

    It gives back arrays by token, and by row; tokens that do not divide are padded with zeros.
    """
    if axes == UNSHARDED:
        return function(tokens, heads)
    length = len(tokens.hidden)
    whole = length + -length % num_shards(axes.tokens)
    specs = PartitionSpec(axes.tokens), PartitionSpec(axes.vocabulary)
    # Nothing is differentiated through it, so nothing depends on JAX knowing what varies where.
    run = jax.shard_map(function, in_specs=specs, out_specs=specs, check_vma=False)
    by_token, by_row = run(jax.tree.map(lambda x: padded(x, whole), tokens), heads)
    return jax.tree.map(lambda x: x[:length], by_token), by_row


def summed(x: Float[Array, "_ D"], axes: AxisNames) -> Float[Array, "_ D"]:
    """Over the devices along these axes; within `over_shards`."""
    return jax.lax.psum(x, axes) if axes else x


def padded(x: Shaped[Array, "T *D"], length: int) -> Shaped[Array, "S *D"]:
    """Zeros after the last token."""
    return jnp.pad(x, [(0, length - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
