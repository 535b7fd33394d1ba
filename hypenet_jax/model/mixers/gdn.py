"""Gated delta net: what it is (`GatedDeltaSpec`), and what it computes (`GatedDeltaMixer`)."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params
from hypenet_jax.model.hype import rotary_angles
from hypenet_jax.model.layers import Initialization, Linear, Normed, Product, RMSNorm, project
from hypenet_jax.model.mixers import delta
from hypenet_jax.model.mixers.delta import DeltaSpec, DeltaState
from hypenet_jax.model.mixers.heads import (
    head_norms,
    norm_and_rotate,
    project_in,
    project_out,
    to_query_heads,
)
from hypenet_jax.model.mixers.softmax import SoftmaxSpec
from hypenet_jax.model.mixers.spec import CheckpointFormat, Rule, check_groups, group_problems
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.model.token_layout import TokenLayout


@dataclasses.dataclass(frozen=True)
class GatedDeltaSpec(DeltaSpec):
    """A state per head that decays by a factor per token and head, and that every key corrects toward its value.

    Attributes:
      num_heads: heads of queries, of the state and of its decay.
      num_kv_heads: key/value heads, each read by num_heads / num_kv_heads neighbouring query heads; None: one each.
      rope_theta: base of the rotary positions; None for no positions.
      qk_norm: RMS norm of every head's queries and keys, before they are rotated and brought to length 1.
      output_gate: multiply the normed outputs by silu(W x), x the mixer's input.
      short_conv: convolutions over four tokens, then silu, of queries, keys and values; each channel by itself.
      silu: silu of queries, keys and values, where there are no convolutions.
      rope_scaling: what becomes of the frequencies of `rope_theta` for long contexts.
      qkv_bias: biases of queries, keys and values.
    """

    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    rope_theta: float | None = None
    qk_norm: bool = False
    output_gate: bool = False
    short_conv: bool = False
    silu: bool = False
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False

    NAME = "gdn"
    CHECKPOINT = CheckpointFormat(
        kind="gdn",
        tensors=(
            *delta.RULES,
            Rule(
                "mixer/silu_gate/kernel",
                "self_attn.g_proj.weight",
                "d n h -> (n h) d",
                "output_gate",
            ),
            Rule("mixer/beta/kernel", "self_attn.b_proj.weight", "d n -> n d"),
            Rule("mixer/decay/kernel", "self_attn.a_proj.weight", "d n -> n d"),
            Rule("mixer/rate/log_rate", "self_attn.A_log", "n -> n"),
            Rule("mixer/rate/bias", "self_attn.dt_bias", "n -> n"),
        ),
        fields={
            "gdn_nh": ("num_heads", int),
            "gdn_nkv": ("num_kv_heads", int),
            "head_dim": ("head_dim", int),
            "gdn_use_rope": ("rope_theta", bool),
            "gdn_use_qk_norm": ("qk_norm", bool),
            "gdn_use_gate": ("output_gate", bool),
            "gdn_use_short_conv": ("short_conv", bool),
        },
        own_fields={"gdn_use_qkv_bias": "qkv_bias"},
        # The first is null or a name; see hf_problems. The others change nothing in the official code.
        ignored=("gdn_activation", "gdn_expand_v", "gdn_attn_mode", "gdn_fuse_cross_entropy"),
    )

    def __post_init__(self) -> None:
        if self.num_kv_heads == self.num_heads:
            object.__setattr__(self, "num_kv_heads", None)  # equal plans compare equal
        check_groups(self.num_heads, self.kv_heads)
        if self.short_conv and self.silu:
            raise ValueError(
                "short convolutions end in a silu of their own; set silu or short_conv"
            )

    def module(self, **fields: Any) -> "GatedDeltaMixer":
        return GatedDeltaMixer(self, **fields)

    @classmethod
    def from_softmax(cls, softmax: SoftmaxSpec) -> "GatedDeltaSpec":
        """The heads, norms, rotary positions and biases of the teacher; neither gate nor convolutions, as in the
        official code."""
        return cls(
            softmax.num_heads,
            softmax.head_dim,
            softmax.num_kv_heads,
            softmax.rope_theta,
            qk_norm=softmax.qk_norm,
            rope_scaling=softmax.rope_scaling,
            qkv_bias=softmax.qkv_bias,
        )

    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """Projections and norms are taken over (`delta.taken_from_softmax`); new ones start as in the official code.

        Its maps are uniform (Xavier, gain 2^-2.5), its rates as `delta.new_rate`.
        """
        filters, maps, rate = jax.random.split(key, 3)
        d_model = params["q"]["kernel"].shape[0]
        shapes = {name: (d_model, self.num_heads) for name in ("beta", "decay")}
        if self.output_gate:
            shapes["silu_gate"] = params["q"]["kernel"].shape
        bound = lambda shape: 2**-2.5 * math.sqrt(6 / (shape[0] + math.prod(shape[1:])))  # noqa: E731
        new = {name: {"kernel": x} for name, x in delta.uniform(maps, shapes, bound).items()}
        new["rate"] = delta.new_rate(rate, (self.num_heads,))
        return {**delta.taken_from_softmax(self, params, filters), **new}

    @classmethod
    def from_hf(
        cls, fields: Mapping[str, Any], rope_theta: float, rope_scaling: RopeScaling | None
    ) -> "GatedDeltaSpec":
        spec = cast(GatedDeltaSpec, super().from_hf(fields, rope_theta, rope_scaling))
        silu = fields.get("gdn_activation") is not None and not spec.short_conv
        return dataclasses.replace(spec, silu=silu)

    def to_hf(self) -> dict[str, Any]:
        activation = "silu" if self.silu else None
        return {**super().to_hf(), "gdn_nkv": self.kv_heads, "gdn_activation": activation}

    @classmethod
    def hf_problems(cls, fields: Mapping[str, Any]) -> Iterator[str]:
        yield from group_problems(fields, "gdn_nh", "gdn_nkv")
        if fields.get("gdn_activation") not in (None, "silu"):
            yield f"gdn_activation {fields['gdn_activation']!r} is neither null nor 'silu'"

    def axis_sizes(self) -> dict[str, int]:
        return {**super().axis_sizes(), "w": delta.WIDTH}


class GatedDeltaMixer(nn.Module):
    """The gated delta rule over the earlier tokens of the same segment.

    q, k, v = W_q x, W_k x, W_v x, each after its convolution or silu where there are such
    q, k = norm(q), norm(k), rotated, brought to length 1; k and v repeated for their query heads
    beta = 2 sigmoid(W_b x);  log_decay = -exp(log_rate) softplus(W_a x + bias), both per head
    y = W_o (norm(gated_delta_rule(q, k, v, log_decay, beta)) * silu(W_gate x)), the norm over each head

    beta above 1 makes the state's answer to a key change its sign (arXiv 2411.12537).
    Source: arXiv 2412.06464; arXiv 2601.22156 (grouped heads and rotary positions).
    """

    spec: GatedDeltaSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Hidden | Normed, layout: TokenLayout, state: DeltaState | None
    ) -> tuple[Hidden | Product, DeltaState | None]:
        spec, count = self.spec, self.spec.num_heads
        angles = rotary_angles(layout.positions, spec.head_dim, spec.rope_theta, spec.rope_scaling)
        # Not "gate": one of zeros is neutral in a sigmoid alone.
        q, k, v, gate = project_in(self, x, gate_name="silu_gate")
        per_head = functools.partial(
            Linear, (self.d_model, count), (axes.EMBED, axes.HEADS), self.start.std
        )
        maps = (per_head(name="beta").matrix(), per_head(name="decay").matrix())
        beta, decay = project(x, maps)
        (q, k, v), inputs = delta.convolved(self, (q, k, v), layout, state)
        if spec.silu:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        q_norm, k_norm = head_norms(self)
        q = delta.unit_length(norm_and_rotate(q, q_norm, angles))
        k = delta.unit_length(norm_and_rotate(k, k_norm, angles, axes.KV_HEADS))
        k, v = (to_query_heads(y, count) for y in (k, v))
        log_decay = delta.DecayRate((count,), (axes.HEADS,), name="rate")(decay)
        beta = 2 * jax.nn.sigmoid(beta.astype(jnp.float32))
        out, after = delta.attend((q, k, v), log_decay, beta, layout, state)
        out = RMSNorm((spec.head_dim,), (axes.HEAD_DIM,), self.norm_eps, name="output_norm")(out)
        y = project_out(self, x, out, gate, activation="silu")
        return y, None if state is None else DeltaState(after, **inputs)
