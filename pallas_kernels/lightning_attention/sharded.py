"""Lightning attention on a mesh whose axes cut the batch and the heads: each device its own part.

The compiler cannot cut up a Pallas kernel. Rows and heads do not speak to each other, so every
device runs the whole op on its own rows and heads; nothing is communicated. A cut sequence is not
handled.
"""

import functools

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from pallas_kernels.lightning_attention import lightning_attention

MeshAxes = str | tuple[str, ...] | None


def sharded(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    batch: MeshAxes,
    heads: MeshAxes,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """`lightning_attention` on the mesh of `jax.set_mesh`; arguments and results as there.

    Args:
      batch, heads: the mesh axes that cut B and N, which they must divide; None: not cut. Other
        axes of the mesh that are larger than 1 leave the choice to implementations that the
        compiler can cut up.
    Raises:
      UnsupportedError: as `lightning_attention`.
      ValueError: a size that its mesh axes do not divide.
    """
    tokens, memory = PartitionSpec(batch, None, heads), PartitionSpec(batch, heads)
    rows = PartitionSpec(batch)
    mesh = jax.sharding.get_abstract_mesh()
    # A Pallas kernel wants all axes of the mesh in the map, those of one device too.
    alone = {name for name, size in mesh.shape.items() if size == 1}
    local = functools.partial(lightning_attention, scale=scale, implementation=implementation)
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, PartitionSpec(heads), memory, rows),
        out_specs=(tokens, memory),
        axis_names=_names(batch) | _names(heads) | alone,
        check_vma=False,  # a Pallas kernel does not say over which axes its results vary
    )(q, k, v, log_decay, state, segment_ids)


def _names(axes: MeshAxes) -> set[str]:
    return set() if axes is None else {axes} if isinstance(axes, str) else set(axes)
