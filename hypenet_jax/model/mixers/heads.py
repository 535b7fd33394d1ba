"""What mixers do alike around their recurrence: project to heads, norm, rotate, gate, project back.

The functions make parameters of the mixer that calls them; only mixers call them.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Angles, Hidden, Keys, Params, Queries
from hypenet_jax.model.layers import Linear, Normed, Product, RMSNorm, project, project_back
from hypenet_jax.model.mixers.spec import MixerSpec
from hypenet_jax.sharding import mesh_axes
from pallas_kernels import MeshAxes, Norm, norm_rotary, rotate

Gate = Float[Array, "B T O"]
"""W_gate x of all heads end to end."""


def project_in(
    mixer: nn.Module, x: Hidden | Normed, gate_name: str = "gate"
) -> tuple[Queries, Keys, Keys, Gate | None]:
    """Queries, keys and values of every head, and where the mixer has one the gate of `project_out`."""
    spec, width, bias = mixer.spec, mixer.spec.head_dim, mixer.spec.qkv_bias

    def linear(name: str, heads: int, axis: str, use_bias: bool) -> Linear:
        shape, names = (mixer.d_model, heads, width), (axes.EMBED, axis, axes.HEAD_DIM)
        return Linear(shape, names, mixer.start.std, use_bias=use_bias, name=name)

    def to_heads(y: Float[Array, "B T O"], made_by: Linear) -> Queries:
        y = y.reshape(*y.shape[:2], -1, width)
        return y + made_by.bias.astype(y.dtype)[None, None] if made_by.use_bias else y

    queries, keys = (spec.num_heads, axes.HEADS), (spec.kv_heads, axes.KV_HEADS)
    maps = [linear("q", *queries, bias), linear("k", *keys, bias), linear("v", *keys, bias)]
    has_gate = getattr(spec, "output_gate", False)
    if has_gate:
        maps.append(linear(gate_name, *queries, False))
    products = project(x, tuple(one.matrix() for one in maps))
    q, k, v = (to_heads(*pair) for pair in zip(products[:3], maps[:3], strict=True))
    return q, k, v, products[3] if has_gate else None


def heads_from_softmax(spec: MixerSpec, params: Params) -> dict[str, Any]:
    """Parameters of queries, keys, values, their norms and the output projection, from those of softmax attention.

    Each key/value head, its bias too, is repeated in place to as many as the spec has. Norms of queries and keys that
    softmax attention lacks start at one.
    """
    taken = {name: params[name] for name in ("q", "o")}
    group = spec.kv_heads // params["k"]["kernel"].shape[1]
    repeat = lambda per_head: jnp.repeat(per_head, group, axis=-2)  # noqa: E731
    taken |= {name: jax.tree.map(repeat, params[name]) for name in ("k", "v")}
    if getattr(spec, "qk_norm", False):
        ones = {"scale": jnp.ones(spec.head_dim)}
        taken |= {name: params.get(name, ones) for name in ("q_norm", "k_norm")}
    return taken


def to_query_heads(x: Keys, num_heads: int) -> Queries:
    """Each key/value head once for every query head that reads it: query head j reads j // group."""
    group = num_heads // x.shape[2]
    return x if group == 1 else jnp.repeat(x, group, axis=2)


def op_axes(x: Queries, heads_axis: str = axes.HEADS) -> MeshAxes:
    """The axes of the mesh in force that shard x, for ops; by default its heads are those of queries."""
    names = (axes.BATCH, axes.TIME, heads_axis)
    return MeshAxes(*(mesh_axes(name, size) for name, size in zip(names, x.shape, strict=False)))


def head_norms(mixer: nn.Module) -> tuple[RMSNorm, RMSNorm] | tuple[None, None]:
    """RMS norms of every head of queries and of keys; None where the mixer has none."""
    if not mixer.spec.qk_norm:
        return None, None
    norm = functools.partial(RMSNorm, (mixer.spec.head_dim,), (axes.HEAD_DIM,), mixer.norm_eps)
    return norm(mixer.start.query_norm, name="q_norm"), norm(name="k_norm")


def norm_and_rotate(
    x: Queries, norm: RMSNorm | None, angles: Angles | None, heads_axis: str = axes.HEADS
) -> Queries:
    """The norm of every head, then its rotation, in one kernel; None leaves either out."""
    if norm is None:
        return x if angles is None else rotate(x, angles)
    if angles is None:
        return norm(x)
    return norm_rotary(x, norm.scale, angles, eps=norm.eps, mesh_axes=op_axes(x, heads_axis))


def project_out(
    mixer: nn.Module,
    x: Hidden | Normed,
    heads: Queries,
    gate: Gate | None,
    *,
    norm: Norm | None = None,
    activation: Literal["sigmoid", "silu"] = "sigmoid",
) -> Hidden | Product:
    """W_o (norm(heads) * activation(gate)), heads end to end; x is the mixer's input."""
    shape, names = (*heads.shape[2:], mixer.d_model), (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    std = mixer.start.std * mixer.start.output_gain
    kernel = Linear(shape, names, std, num_inputs=2, name="o").matrix()
    joint = heads.reshape(*heads.shape[:2], len(kernel))
    return project_back(x, joint, kernel, norm=norm, gate=gate, activation=activation)
