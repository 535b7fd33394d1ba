"""What every mixer does alike around its own recurrence: project to heads, norm, rotate, gate, project back.

The functions make parameters of the mixer that calls them; only mixers call them.
"""

import flax.linen as nn
import jax

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Keys, Queries
from hypenet_jax.model.hype import rotary_angles, rotate
from hypenet_jax.model.layers import Linear, RMSNorm
from hypenet_jax.model.timeline import Timeline


def project_qkv(
    mixer: nn.Module, x: Hidden, num_heads: int, num_kv_heads: int, *, qk_norm: bool
) -> tuple[Queries, Keys, Keys]:
    """Queries, keys and values of every head; queries and keys RMS-normed per head where `qk_norm`."""
    q = _to_heads(mixer, "q", num_heads, axes.HEADS)(x)
    k = _to_heads(mixer, "k", num_kv_heads, axes.KV_HEADS)(x)
    v = _to_heads(mixer, "v", num_kv_heads, axes.KV_HEADS)(x)
    if qk_norm:
        shape, names = (mixer.spec.head_dim,), (axes.HEAD_DIM,)
        q = RMSNorm(shape, names, mixer.norm_eps, mixer.start.query_norm, name="q_norm")(q)
        k = RMSNorm(shape, names, mixer.norm_eps, name="k_norm")(k)
    return q, k, v


def place_heads(
    q: Queries, k: Keys, timeline: Timeline, theta: float | None
) -> tuple[Queries, Keys]:
    """Rotate queries and keys to their positions; without a base they stay as they are (NoPE)."""
    if theta is None:
        return q, k
    angles = rotary_angles(timeline.positions, q.shape[-1], theta)
    return rotate(q, angles), rotate(k, angles)


def output_gate(mixer: nn.Module, x: Hidden, num_heads: int) -> Queries:
    """sigmoid(W_gate x), one number per head and dimension, from the mixer's input."""
    return jax.nn.sigmoid(_to_heads(mixer, "gate", num_heads, axes.HEADS)(x))


def project_out(mixer: nn.Module, heads: Queries) -> Hidden:
    """Heads back to the width of the residual stream."""
    shape = (*heads.shape[2:], mixer.d_model)
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    std = mixer.start.std * mixer.start.output_gain
    return Linear(shape, names, std, mixer.dtype, num_inputs=2, name="o")(heads)


def _to_heads(mixer: nn.Module, name: str, num_heads: int, heads_axis: str) -> Linear:
    shape = (mixer.d_model, num_heads, mixer.spec.head_dim)
    names = (axes.EMBED, heads_axis, axes.HEAD_DIM)
    return Linear(shape, names, mixer.start.std, mixer.dtype, name=name)
