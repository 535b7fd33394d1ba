"""Softmax attention: its state (`KVState`), what it is (`SoftmaxSpec`), and what it computes (`SoftmaxMixer`)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import CacheSlots, Hidden, Keys, Params, Queries
from hypenet_jax.model import hype
from hypenet_jax.model.layers import Initialization, Normed, Product
from hypenet_jax.model.mixers.heads import (
    head_norms,
    heads_from_softmax,
    norm_and_rotate,
    op_axes,
    project_in,
    project_out,
)
from hypenet_jax.model.mixers.spec import (
    ATTENTION_RULES,
    CheckpointFormat,
    MixerSpec,
    MixerState,
    Rule,
    check_groups,
)
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.model.token_layout import TokenLayout, with_slots
from hypenet_jax.sharding import constrain
from pallas_kernels import AxisNames, attention, decode_attention, num_shards, on_each_device

KV_AXES = (axes.BATCH, axes.TIME, axes.KV_HEADS, axes.HEAD_DIM)


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class KVState(MixerState):
    """Keys and values of the tokens written so far, one cache slot each, in the compute dtype."""

    keys: Keys
    values: Keys

    def with_capacity(self, capacity: int) -> "KVState":
        return jax.tree.map(lambda per_slot: with_slots(per_slot, capacity), self)

    def rewound(self, mark: MixerState) -> "KVState":
        return self


@dataclasses.dataclass(frozen=True)
class SoftmaxSpec(MixerSpec):
    """Causal softmax attention with grouped key/value heads.

    Attributes:
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: key/value heads; query head j reads key/value head j // (num_heads // num_kv_heads).
      rope_theta: base of the rotary positions; None is NoPE, as HypeNet's softmax layers are.
      output_gate: multiply the heads' outputs by sigmoid(W x), x the mixer's input.
      logit_scale: factor on the logits: `LogLengthScale` by position, a constant, or None for 1.
      rope_scaling: what becomes of the frequencies of `rope_theta`, and of the logits, for long contexts.
      qk_norm: RMS norm of every head's queries and keys, as in Qwen3; Llama has none.
      qkv_bias: biases of queries, keys and values, as in Qwen2.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float | None = None
    output_gate: bool = False
    logit_scale: hype.LogitScale = None
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = True
    qkv_bias: bool = False

    NAME = "softmax"
    STATE_AXES: ClassVar = {"keys": KV_AXES, "values": KV_AXES}
    CHECKPOINT = CheckpointFormat(
        kind="attn",
        in_transformers=True,
        tensors=(
            *ATTENTION_RULES,
            Rule("mixer/gate/kernel", "self_attn.o_gate.weight", "d n h -> (n h) d", "output_gate"),
        ),
        fields={
            "num_attention_heads": ("num_heads", int),
            "num_key_value_heads": ("num_kv_heads", int),
            "head_dim": ("head_dim", int),
            "attn_use_rope": ("rope_theta", bool),
            "attn_use_output_gate": ("output_gate", bool),
        },
        own_fields={"attn_use_qk_norm": "qk_norm", "attn_use_qkv_bias": "qkv_bias"},
        ignored=("attn_logits_scaling",),  # of several types; see hf_problems
    )

    def __post_init__(self) -> None:
        check_groups(self.num_heads, self.num_kv_heads)
        if self.rope_theta is None and self.rope_scaling is not None:
            raise ValueError(f"{self.rope_scaling} scales rotary positions, and rope_theta is None")

    def module(self, **fields: Any) -> "SoftmaxMixer":
        return SoftmaxMixer(self, **fields)

    def init_state(self, batch: int, capacity: int, dtype: DTypeLike) -> KVState:
        """Empty slots; on a mesh (`sharding.on_mesh`) they are sharded as a sequence is, where they divide."""
        shape = (batch, capacity, self.num_kv_heads, self.head_dim)
        return KVState(*(constrain(jnp.zeros(shape, dtype), KV_AXES) for _ in range(2)))

    def mixing_flops(self, tokens: int, before: int) -> float:
        """4 N H per pair of a query and a key at or before it."""
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return 4.0 * self.num_heads * self.head_dim * pairs

    def state_bytes(self, capacity: int, itemsize: int) -> int:
        """2 S K H numbers."""
        return 2 * capacity * self.num_kv_heads * self.head_dim * itemsize

    def decode_bytes(self, length: int, itemsize: int) -> int:
        """All keys and values are read."""
        return self.state_bytes(length, itemsize)

    @property
    def query_scale(self) -> float:
        """Factor on all logits, whatever their position."""
        scaling = self.rope_scaling
        return self.head_dim**-0.5 * (1.0 if scaling is None else scaling.logit_factor)

    def without_positions(self) -> "SoftmaxSpec":
        """The same without rotary positions (NoPE)."""
        return dataclasses.replace(self, rope_theta=None, rope_scaling=None)

    @classmethod
    def from_softmax(cls, softmax: "SoftmaxSpec") -> "SoftmaxSpec":
        """A kept layer loses its rotary positions and gains an output gate."""
        return dataclasses.replace(softmax.without_positions(), output_gate=True)

    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """See `heads_from_softmax`; a gate starts as in the official code, normal with deviation 0.02."""
        taken = heads_from_softmax(self, params)
        if self.output_gate:
            gate = Initialization().std * jax.random.normal(key, params["q"]["kernel"].shape)
            taken["gate"] = {"kernel": gate}
        return taken

    @classmethod
    def from_hf(
        cls, fields: Mapping[str, Any], rope_theta: float, rope_scaling: RopeScaling | None
    ) -> "SoftmaxSpec":
        scale = hype.logit_scale_from_hf(fields["attn_logits_scaling"])
        spec = cast(SoftmaxSpec, super().from_hf(fields, rope_theta, rope_scaling))
        return dataclasses.replace(spec, logit_scale=scale)

    def to_hf(self) -> dict[str, Any]:
        return {**super().to_hf(), "attn_logits_scaling": hype.logit_scale_to_hf(self.logit_scale)}

    @classmethod
    def hf_problems(cls, fields: Mapping[str, Any]) -> Iterator[str]:
        if "attn_logits_scaling" not in fields:
            yield "attn_logits_scaling is missing; null means none"
        try:
            hype.logit_scale_from_hf(fields.get("attn_logits_scaling"))
        except ValueError as error:
            yield f"attn_logits_scaling: {error}"


class SoftmaxMixer(nn.Module):
    """Softmax attention over the earlier tokens of the same segment.

    q, k, v = norm(W_q x), norm(W_k x), W_v x;  q and k rotate where `rope_theta` is set;  q is scaled by `logit_scale`
    o_t = sum_s softmax_s(q_t . k_s / sqrt(H)) v_s;  y = W_o (o * sigmoid(W_gate x))

    Norms where `qk_norm`; where `qkv_bias`, a bias after each of W_q, W_k, W_v.
    Source: Qwen3 (arXiv 2505.09388); gate, NoPE and logit scale: arXiv 2601.22156.
    """

    spec: SoftmaxSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Hidden | Normed, layout: TokenLayout, state: KVState | None
    ) -> tuple[Hidden | Product, KVState | None]:
        spec = self.spec
        rotary = (spec.head_dim, spec.rope_theta, spec.rope_scaling)
        angles = hype.rotary_angles(layout.positions, *rotary)
        q, k, v, gate = project_in(self, x)
        q_norm, k_norm = head_norms(self)
        q = _scale_logits(norm_and_rotate(q, q_norm, angles), layout, spec.logit_scale)
        k = norm_and_rotate(k, k_norm, angles, axes.KV_HEADS)
        if state is not None:
            state = _write(state, k, v, layout)
            k, v = state.keys.astype(self.dtype), state.values.astype(self.dtype)
        heads = _attend(q, k, v, layout, spec.query_scale)
        return project_out(self, x, heads, gate), state


def _attend(q: Queries, k: Keys, v: Keys, layout: TokenLayout, scale: float) -> Queries:
    """Attention to the tokens themselves, or to the slots of a cache; one token against a cache is an op of its own."""
    segment_ids, slots = layout.segment_ids, layout.cache_slots
    if slots is None:
        return attention(q, k, v, scale=scale, segment_ids=segment_ids, mesh_axes=op_axes(q))
    assert segment_ids is not None  # a call with a cache always has them
    cache: dict[str, Any] = {
        "scale": scale,
        "key_segment_ids": layout.slot_segment_ids,
        "mesh_axes": op_axes(k, axes.KV_HEADS),
    }
    if q.shape[1] > 1:
        return attention(q, k, v, query_slots=slots, segment_ids=segment_ids, **cache)
    one = decode_attention(q[:, 0], k, v, slots[:, 0], segment_ids=segment_ids[:, 0], **cache)
    return one[:, None]


def _scale_logits(q: Queries, layout: TokenLayout, scale: hype.LogitScale) -> Queries:
    """Multiply in float32: the factors of neighbouring far positions are equal in bfloat16."""
    if scale is None:
        return q
    by_position = isinstance(scale, hype.LogLengthScale)
    factor = scale.at(layout.positions)[:, :, None, None] if by_position else scale
    return (q.astype(jnp.float32) * factor).astype(q.dtype)


def _write(state: KVState, k: Keys, v: Keys, layout: TokenLayout) -> KVState:
    """The cache with the new tokens in their slots; each device writes those that it holds."""
    sharded = op_axes(state.keys, axes.KV_HEADS)
    cache = PartitionSpec(sharded.batch, sharded.sequence, sharded.heads)
    new, rows = PartitionSpec(sharded.batch, None, sharded.heads), PartitionSpec(sharded.batch)
    local = functools.partial(_write_own, sharded.sequence)
    write = on_each_device(local, ((cache, cache), (new, new), rows), (cache, cache))
    return KVState(*write((state.keys, state.values), (k, v), layout.cache_slots))


def _write_own(
    sharded: AxisNames,
    caches: tuple[Keys, Keys],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    slots: CacheSlots,
) -> tuple[Keys, Keys]:
    rows, capacity = jnp.arange(len(slots))[:, None], caches[0].shape[1]
    if num_shards(sharded) > 1:
        slots = slots - jax.lax.axis_index(sharded) * capacity
        slots = jnp.where(slots < 0, capacity, slots)  # negative ones would count from the end
    keys, values = (
        cache.at[rows, slots].set(x.astype(cache.dtype), mode="drop")
        for cache, x in zip(caches, new, strict=True)
    )
    return keys, values
