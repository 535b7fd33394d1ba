"""Norm and rotary positions on a mesh whose axes cut batch, sequence and heads: each device its own part."""

import functools

from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels.mesh import MeshAxes, on_each_device
from pallas_kernels.norm_rotary import norm_rotary


def sharded(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "H"],
    angles: Float[Array, "B T J"],
    *,
    eps: float,
    batch: MeshAxes,
    sequence: MeshAxes,
    heads: MeshAxes,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """`norm_rotary` on the mesh of `jax.set_mesh`; nothing is communicated, but the gradient toward scale.

    Args:
      batch, sequence, heads: the mesh axes that cut B, T and N, which they must divide.
    """
    tokens = PartitionSpec(batch, sequence, heads)
    local = functools.partial(norm_rotary, eps=eps, implementation=implementation)
    specs = (tokens, PartitionSpec(), PartitionSpec(batch, sequence))
    return on_each_device(local, specs, tokens)(x, scale, angles)
