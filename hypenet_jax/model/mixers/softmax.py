"""Softmax attention: what it is (`SoftmaxSpec`), what it remembers (`KVState`), what it does (`SoftmaxMixer`)."""

import dataclasses
import functools
from typing import no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import CacheSlots, Hidden, Keys, Queries
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers.heads import (
    head_angles,
    head_norms,
    op_axes,
    project_in,
    project_out,
)
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import constrain
from pallas_kernels import (
    AxisNames,
    Norm,
    attention,
    decode_attention,
    num_shards,
    on_each_device,
)


@dataclasses.dataclass(frozen=True)
class SoftmaxSpec:
    """Causal softmax attention with grouped key/value heads and per-head RMS norms of queries and keys.

    Attributes:
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: key/value heads; query head j reads key/value head j // (num_heads // num_kv_heads).
      head_dim: width of one head.
      rope_theta: base of the rotary positions; None is NoPE, as HypeNet's softmax layers are.
      output_gate: multiply the heads' outputs by sigmoid(W x), x the mixer's input.
      logit_scale: factor on the logits: `LogLengthScale` by position, a constant, or None for 1.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float | None = None
    output_gate: bool = False
    logit_scale: LogLengthScale | float | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class KVState:
    """Keys and values of the tokens written so far, one cache slot each, in the compute dtype."""

    keys: Keys
    values: Keys


KV_AXES = (axes.BATCH, axes.TIME, axes.KV_HEADS, axes.HEAD_DIM)


def empty_kv(spec: SoftmaxSpec, batch: int, capacity: int, dtype: DTypeLike) -> KVState:
    """An empty cache with room for `capacity` tokens per row: 2 * capacity * K * H numbers.

    On a mesh (`sharding.on_mesh`) slots are cut as a sequence is, where they divide.
    """
    shape = (batch, capacity, spec.num_kv_heads, spec.head_dim)
    return KVState(*(constrain(jnp.zeros(shape, dtype), KV_AXES) for _ in range(2)))


class SoftmaxMixer(nn.Module):
    """Softmax attention over the earlier tokens of the same document.

    q, k, v = norm(W_q x), norm(W_k x), W_v x;  q and k rotate where `rope_theta` is set;  q is scaled by `logit_scale`
    o_t = sum_s softmax_s(q_t . k_s / sqrt(H)) v_s;  y = W_o (o * sigmoid(W_gate x))

    Source: Qwen3 (arXiv 2505.09388); gate, NoPE and logit scale: arXiv 2601.22156.
    """

    spec: SoftmaxSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        layout: TokenLayout,
        state: KVState | None,
        norm: Norm | None = None,
        residual: Hidden | None = None,
    ) -> tuple[Hidden, KVState | None]:
        spec = self.spec
        angles = head_angles(layout, spec.head_dim, spec.rope_theta)
        q, k, v, gate = project_in(self, x, spec.num_heads, spec.num_kv_heads, norm=norm)
        q_norm, k_norm = head_norms(self)
        q, k = q_norm(q, angles), k_norm(k, angles)
        q = _scale_logits(q, layout, spec.logit_scale)
        if state is not None:
            state = _write(state, k, v, layout)
            k, v = state.keys.astype(self.dtype), state.values.astype(self.dtype)
        heads = _attend(q, k, v, layout, spec.head_dim**-0.5)
        return project_out(self, heads, gate, residual=residual), state


def _attend(q: Queries, k: Keys, v: Keys, layout: TokenLayout, scale: float) -> Queries:
    """Attention to the tokens themselves, or to the slots of a cache; one token against a cache is an op of its own."""
    segment_ids, slots = layout.segment_ids, layout.cache_slots
    if slots is None:
        return attention(q, k, v, scale=scale, segment_ids=segment_ids, mesh_axes=op_axes(q))
    assert segment_ids is not None  # a call with a cache always has them
    sharded, of_slots = op_axes(k, axes.KV_HEADS), layout.slot_segment_ids
    if q.shape[1] > 1:
        return attention(
            *(q, k, v),
            scale=scale,
            query_slots=slots,
            segment_ids=segment_ids,
            key_segment_ids=of_slots,
            mesh_axes=sharded,
        )
    heads = decode_attention(
        *(q[:, 0], k, v, slots[:, 0]),
        scale=scale,
        segment_ids=segment_ids[:, 0],
        key_segment_ids=of_slots,
        mesh_axes=sharded,
    )
    return heads[:, None]


def _scale_logits(q: Queries, layout: TokenLayout, scale: LogLengthScale | float | None) -> Queries:
    """Multiply in float32: the factors of neighbouring far positions are equal in bfloat16."""
    if scale is None:
        return q
    if isinstance(scale, LogLengthScale):
        factor = scale.at(layout.positions)[:, :, None, None]
        return (q.astype(jnp.float32) * factor).astype(q.dtype)
    return (q.astype(jnp.float32) * scale).astype(q.dtype)


def _write(state: KVState, k: Keys, v: Keys, layout: TokenLayout) -> KVState:
    """The cache with the new tokens in their slots; each device writes those that it holds."""
    sharded = op_axes(state.keys, axes.KV_HEADS)
    cache = PartitionSpec(sharded.batch, sharded.sequence, sharded.heads)
    new, rows = PartitionSpec(sharded.batch, None, sharded.heads), PartitionSpec(sharded.batch)
    local = functools.partial(_write_own, sharded.sequence)
    return KVState(
        *on_each_device(local, ((cache, cache), (new, new), rows), (cache, cache))(
            (state.keys, state.values), (k, v), layout.cache_slots
        )
    )


def _write_own(
    sharded: AxisNames,
    caches: tuple[Keys, Keys],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    slots: CacheSlots,
) -> tuple[Keys, Keys]:
    rows, room = jnp.arange(len(slots))[:, None], caches[0].shape[1]
    if num_shards(sharded) > 1:
        slots = slots - jax.lax.axis_index(sharded) * room
        slots = jnp.where(slots < 0, room, slots)  # negative ones would count from the end
    keys, values = (
        cache.at[rows, slots].set(x.astype(cache.dtype), mode="drop")
        for cache, x in zip(caches, new, strict=True)
    )
    return keys, values
