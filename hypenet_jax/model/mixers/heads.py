"""What mixers do alike around their recurrence: project to heads, norm, rotate, gate, project back.

The functions make parameters of the mixer that calls them; only mixers call them.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Angles, Hidden, Keys, Queries
from hypenet_jax.model.fusion import Normed, Product, project, project_back
from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.model.layers import Linear, parameter
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import mesh_axes
from pallas_kernels import MeshAxes, Norm, norm_rotary, rms_norm

Gate = Float[Array, "B T O"]
"""W_gate x of all heads end to end."""


def project_in(
    mixer: nn.Module, x: Hidden | Normed, num_heads: int, num_kv_heads: int
) -> tuple[Queries, Keys, Keys, Gate | None]:
    """Queries, keys and values of every head, and where the mixer has one the gate of `project_out`."""
    queries, keys = (num_heads, axes.HEADS), (num_kv_heads, axes.KV_HEADS)
    heads = {"q": queries, "k": keys, "v": keys}
    if mixer.spec.output_gate:
        heads["gate"] = queries
    kernels = tuple(_to_heads(mixer, name, *each) for name, each in heads.items())
    q, k, v, *gate = project(x, kernels)
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
    """RMS norm of every head, and where angles are given its rotation, in one kernel."""

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
    x: Hidden | Normed,
    heads: Queries,
    gate: Gate | None,
    *,
    norm: Norm | None = None,
) -> Hidden | Product:
    """W_o (norm(heads) * sigmoid(gate)), heads end to end; x is the mixer's input."""
    shape = (*heads.shape[2:], mixer.d_model)
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    std = mixer.start.std * mixer.start.output_gain
    kernel = Linear(shape, names, std, num_inputs=2, name="o").matrix()
    joint = heads.reshape(*heads.shape[:2], len(kernel))
    return project_back(x, joint, kernel, norm=norm, gate=gate)


def _to_heads(mixer: nn.Module, name: str, num_heads: int, heads_axis: str) -> Float[Array, "D O"]:
    shape = (mixer.d_model, num_heads, mixer.spec.head_dim)
    names = (axes.EMBED, heads_axis, axes.HEAD_DIM)
    return Linear(shape, names, mixer.start.std, name=name).matrix()


def projection_flops(
    d_model: int, head_dim: int, num_heads: int, num_kv_heads: int, *, output_gate: bool
) -> tuple[float, float]:
    """FLOPs per token of `project_in` and of `project_out`."""
    heads = num_heads * (1 + output_gate) + 2 * num_kv_heads
    return 2.0 * d_model * heads * head_dim, 2.0 * d_model * num_heads * head_dim
