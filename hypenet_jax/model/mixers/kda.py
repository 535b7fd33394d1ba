"""Kimi delta attention: what it is (`KimiDeltaSpec`), and what it computes (`KimiDeltaMixer`)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

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
from hypenet_jax.model.mixers.heads import head_norms, norm_and_rotate, project_in, project_out
from hypenet_jax.model.mixers.softmax import SoftmaxSpec
from hypenet_jax.model.mixers.spec import CheckpointFormat, Rule, rotary_problems
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.model.token_layout import TokenLayout


@dataclasses.dataclass(frozen=True)
class KimiDeltaSpec(DeltaSpec):
    """A state per head that decays by a factor per token and channel, and that every key corrects toward its value.

    Attributes:
      num_heads: heads of queries, keys and values alike.
      rope_theta: base of the rotary positions; None for no positions.
      qk_norm: RMS norm of every head's queries and keys, before they are rotated and brought to length 1.
      short_conv: convolutions over four tokens, then silu, of queries, keys and values; each channel by itself.
      rope_scaling: what becomes of the frequencies of `rope_theta` for long contexts.
      qkv_bias: biases of queries, keys and values.
    """

    num_heads: int
    head_dim: int
    rope_theta: float | None = None
    qk_norm: bool = True
    short_conv: bool = False
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False

    NAME = "kda"
    CHECKPOINT = CheckpointFormat(
        kind="kda",
        tensors=(
            *delta.RULES,
            Rule("mixer/beta/kernel", "self_attn.b_proj.weight", "d n -> n d"),
            Rule("mixer/decay_in/kernel", "self_attn.f_a_proj.weight", "d r -> r d"),
            Rule("mixer/decay_out/kernel", "self_attn.f_b_proj.weight", "r n h -> (n h) r"),
            Rule("mixer/gate_in/kernel", "self_attn.g_a_proj.weight", "d r -> r d"),
            Rule("mixer/gate_out/kernel", "self_attn.g_b_proj.weight", "r n h -> (n h) r"),
            Rule("mixer/rate/log_rate", "self_attn.A_log", "n -> () () n ()"),
            Rule("mixer/rate/bias", "self_attn.dt_bias", "n h -> (n h)"),
        ),
        fields={
            "kda_num_heads": ("num_heads", int),
            "kda_head_dim": ("head_dim", int),
            "kda_use_rope": ("rope_theta", bool),
            "kda_use_qk_norm": ("qk_norm", bool),
            "kda_use_conv": ("short_conv", bool),
        },
        own_fields={"kda_use_qkv_bias": "qkv_bias"},
        fixed={"kda_conv_size": delta.WIDTH},
    )

    def module(self, **fields: Any) -> "KimiDeltaMixer":
        return KimiDeltaMixer(self, **fields)

    @classmethod
    def from_softmax(cls, softmax: SoftmaxSpec) -> "KimiDeltaSpec":
        """As many heads as queries have; rotary positions and biases are taken over, queries and keys always normed."""
        return cls(
            softmax.num_heads,
            softmax.head_dim,
            softmax.rope_theta,
            rope_scaling=softmax.rope_scaling,
            qkv_bias=softmax.qkv_bias,
        )

    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """Projections and norms are taken over (`delta.taken_from_softmax`); new ones start as in the official code.

        Maps are uniform in +-1/sqrt(their inputs), rates as `delta.new_rate`, whose biases that code leaves open.
        """
        filters, maps, rate = jax.random.split(key, 3)
        d_model, (heads, width) = params["q"]["kernel"].shape[0], (self.num_heads, self.head_dim)
        shapes: dict[str, tuple[int, ...]] = {"beta": (d_model, heads)}
        for name in ("decay", "gate"):
            shapes |= {f"{name}_in": (d_model, width), f"{name}_out": (width, heads, width)}
        new = delta.uniform(maps, shapes, lambda shape: shape[0] ** -0.5)
        rates = delta.new_rate(rate, (heads, width))
        taken = delta.taken_from_softmax(self, params, filters)
        return {**taken, **{name: {"kernel": x} for name, x in new.items()}, "rate": rates}

    @classmethod
    def hf_problems(cls, fields: Mapping[str, Any]) -> Iterator[str]:
        yield from rotary_problems(fields, "kda")

    def axis_sizes(self) -> dict[str, int]:
        return {**super().axis_sizes(), "r": self.head_dim, "w": delta.WIDTH}


class KimiDeltaMixer(nn.Module):
    """The gated delta rule with a decay per channel, over the earlier tokens of the same segment.

    q, k, v = W_q x, W_k x, W_v x, each after its convolution where there are such
    q, k = norm(q), norm(k), rotated, brought to length 1
    beta = sigmoid(W_b x), per head;  log_decay = -exp(log_rate) softplus(W_decay_out W_decay_in x + bias), per channel
    y = W_o (norm(gated_delta_rule(q, k, v, log_decay, beta)) * sigmoid(W_gate_out W_gate_in x))

    The norm is over each head. Both inner widths are that of a head.
    Source: arXiv 2510.26692; arXiv 2601.22156 (norms and rotary positions).
    """

    spec: KimiDeltaSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Hidden | Normed, layout: TokenLayout, state: DeltaState | None
    ) -> tuple[Hidden | Product, DeltaState | None]:
        spec = self.spec
        heads = (spec.num_heads, spec.head_dim)
        angles = rotary_angles(layout.positions, spec.head_dim, spec.rope_theta, spec.rope_scaling)
        q, k, v, _ = project_in(self, x)
        beta, decay, gate = _maps(self, x)
        (q, k, v), inputs = delta.convolved(self, (q, k, v), layout, state)
        q_norm, k_norm = head_norms(self)
        q = delta.unit_length(norm_and_rotate(q, q_norm, angles))
        k = delta.unit_length(norm_and_rotate(k, k_norm, angles, axes.KV_HEADS))
        rate = delta.DecayRate(heads, (axes.HEADS, axes.HEAD_DIM), name="rate")
        log_decay = rate(decay.reshape(*decay.shape[:2], *heads))
        beta = jax.nn.sigmoid(beta.astype(jnp.float32))
        out, after = delta.attend((q, k, v), log_decay, beta, layout, state)
        out = RMSNorm((spec.head_dim,), (axes.HEAD_DIM,), self.norm_eps, name="output_norm")(out)
        y = project_out(self, x, out, gate)
        return y, None if state is None else DeltaState(after, **inputs)


def _maps(mixer: KimiDeltaMixer, x: Hidden | Normed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """W_b x, and of decay and gate the products of their two maps."""
    heads, width = mixer.spec.num_heads, mixer.spec.head_dim
    linear = functools.partial(Linear, std=mixer.start.std)
    narrow = functools.partial(linear, (mixer.d_model, width), (axes.EMBED, axes.HEAD_DIM))
    wide = functools.partial(
        linear, (width, heads, width), (axes.HEAD_DIM, axes.HEADS, axes.HEAD_DIM)
    )
    per_head = linear((mixer.d_model, heads), (axes.EMBED, axes.HEADS), name="beta")
    maps = (per_head, narrow(name="decay_in"), narrow(name="gate_in"))
    beta, decay, gate = project(x, tuple(one.matrix() for one in maps))
    (decay,) = project(decay, (wide(name="decay_out").matrix(),))
    (gate,) = project(gate, (wide(name="gate_out").matrix(),))
    return beta, decay, gate
