"""What every mixer does alike around its own recurrence: project to heads, norm, rotate, gate, project back.

The functions make parameters of the mixer that calls them; only mixers call them.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Angles, Hidden, Keys, Queries
from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.model.layers import Linear, parameter
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import mesh_axes
from pallas_kernels import MeshAxes, Norm, norm_rotary, projection, rms_norm

Gate = Float[Array, "B T O"]
"""W_gate norm(x) of all heads end to end."""


def project_in(
    mixer: nn.Module, x: Hidden, num_heads: int, num_kv_heads: int, *, norm: Norm | None
) -> tuple[Queries, Keys, Keys, Gate | None]:
    """Queries, keys and values of every head, and where the mixer has one the gate of `project_out`, all of norm(x)."""
    queries, keys = (num_heads, axes.HEADS), (num_kv_heads, axes.KV_HEADS)
    wanted = {"q": queries, "k": keys, "v": keys}
    if mixer.spec.output_gate:
        wanted["gate"] = queries
    kernels = tuple(_to_heads(mixer, name, *heads) for name, heads in wanted.items())
    q, k, v, *gate = projection(x, kernels, norm=norm)
    q, k, v = (y.reshape(*y.shape[:2], -1, mixer.spec.head_dim) for y in (q, k, v))
    return q, k, v, gate[0] if gate else None


def op_axes(x: Queries, heads_axis: str = axes.HEADS) -> MeshAxes:
    """The axes of the mesh in force that shard x, for ops; by default its heads are those of queries."""
    names = (axes.BATCH, axes.TIME, heads_axis)
    return MeshAxes(*(mesh_axes(name, size) for name, size in zip(names, x.shape, strict=False)))


def head_angles(layout: TokenLayout, head_dim: int, theta: float | None) -> Angles | None:
    """Rotary angles of the positions; None without a base: queries and keys stay as they are (NoPE)."""
    return None if theta is None else rotary_angles(layout.positions, head_dim, theta)


class HeadNorm(nn.Module):
    """RMS norm of every head, and in the same pass over memory its rotation where angles are given."""

    width: int
    eps: float
    heads_axis: str
    start: float = 1.0

    def setup(self) -> None:
        start = nn.initializers.constant(self.start)
        self.scale = parameter(self, "scale", start, (self.width,), (axes.HEAD_DIM,))

    def __call__(self, x: Queries, angles: Angles | None) -> Queries:
        if angles is None:
            return rms_norm(x, self.scale, self.eps)
        sharded = op_axes(x, self.heads_axis)
        return norm_rotary(x, self.scale, angles, eps=self.eps, mesh_axes=sharded)


def head_norms(mixer: nn.Module) -> tuple[HeadNorm, HeadNorm]:
    """Those of queries and of keys."""
    width, eps = mixer.spec.head_dim, mixer.norm_eps
    q_norm = HeadNorm(width, eps, axes.HEADS, mixer.start.query_norm, name="q_norm")
    return q_norm, HeadNorm(width, eps, axes.KV_HEADS, name="k_norm")


def project_out(
    mixer: nn.Module,
    heads: Queries,
    gate: Gate | None,
    *,
    norm: Norm | None = None,
    residual: Hidden | None,
) -> Hidden:
    """residual + W_o (norm(heads) * sigmoid(gate)), heads end to end; what is None is left out."""
    shape = (*heads.shape[2:], mixer.d_model)
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    std = mixer.start.std * mixer.start.output_gain
    kernel = Linear(shape, names, std, num_inputs=2, name="o").matrix()
    joint = heads.reshape(*heads.shape[:2], len(kernel))
    return projection(joint, (kernel,), norm=norm, gate=gate, residual=residual)[0]


def _to_heads(mixer: nn.Module, name: str, num_heads: int, heads_axis: str) -> Float[Array, "D O"]:
    shape = (mixer.d_model, num_heads, mixer.spec.head_dim)
    names = (axes.EMBED, heads_axis, axes.HEAD_DIM)
    return Linear(shape, names, mixer.start.std, name=name).matrix()
