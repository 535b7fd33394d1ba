"""Lightning attention: its state (`LightningState`), what it is (`LightningSpec`), and what it computes."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Angles, Hidden, Keys, Params, Queries
from hypenet_jax.model.hype import rotary_angles, table
from hypenet_jax.model.layers import Initialization, Normed, Product, RMSNorm
from hypenet_jax.model.mixers.heads import (
    head_norms,
    heads_from_softmax,
    norm_and_rotate,
    op_axes,
    project_in,
    project_out,
    to_query_heads,
)
from hypenet_jax.model.mixers.softmax import SoftmaxSpec
from hypenet_jax.model.mixers.spec import (
    ATTENTION_RULES,
    CheckpointFormat,
    MixerSpec,
    MixerState,
    Rule,
    check_groups,
    group_problems,
    rotary_problems,
)
from hypenet_jax.model.rope_scaling import RopeScaling
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import constrain
from pallas_kernels import HeadNorms, lightning_attention, lightning_step

RECURRENT_AXES = (axes.BATCH, axes.HEADS, axes.HEAD_DIM, axes.HEAD_DIM)
Scale = Literal["1/sqrt(d)", "1/d", "1"]


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class LightningState(MixerState):
    """State of every head, [key dim, value dim], float32: bfloat16 loses 2 % on the slowest head."""

    recurrent_state: Float[Array, "B N H H"]


@dataclasses.dataclass(frozen=True)
class LightningSpec(MixerSpec):
    """Linear attention whose state decays by a fixed factor per head, exp(-slope_h).

    Attributes:
      num_heads: heads of queries and of the state.
      rope_theta: base of the rotary positions; None for no positions.
      scale: factor on the queries, by the official names.
      qk_norm: RMS norm of every head's queries and keys.
      output_norm: one RMS norm over all heads jointly, before the gate.
      output_gate: multiply the outputs by sigmoid(W x), x the mixer's input.
      rope_scaling: what becomes of the frequencies of `rope_theta`, and of q . k, for long contexts.
      qkv_bias: biases of queries, keys and values.
      num_kv_heads: key/value heads, each read by num_heads / num_kv_heads neighbouring query heads; None: one each.
    """

    num_heads: int
    head_dim: int
    rope_theta: float | None
    scale: Scale = "1/sqrt(d)"
    qk_norm: bool = True
    output_norm: bool = True
    output_gate: bool = True
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    num_kv_heads: int | None = None

    NAME = "lightning"
    STATE_AXES: ClassVar = {"recurrent_state": RECURRENT_AXES}
    CHECKPOINT = CheckpointFormat(
        kind="lightning-attn",
        in_transformers=True,
        tensors=(
            *ATTENTION_RULES,
            Rule("mixer/gate/kernel", "self_attn.z_proj.weight", "d n h -> (n h) d", "output_gate"),
            Rule(
                "mixer/output_norm/scale", "self_attn.o_norm.weight", "n h -> (n h)", "output_norm"
            ),
        ),
        fields={
            "lightning_nh": ("num_heads", int),
            "lightning_nkv": ("num_kv_heads", int),
            "lightning_head_dim": ("head_dim", int),
            "lightning_scale": ("scale", str),
            "lightning_use_rope": ("rope_theta", bool),
            "lightning_use_qk_norm": ("qk_norm", bool),
            "lightning_use_output_norm": ("output_norm", bool),
            "lightning_use_output_gate": ("output_gate", bool),
        },
        own_fields={"lightning_use_qkv_bias": "qkv_bias"},
        fixed={"lightning_use_short_conv": False, "lightning_rope_scaling": None},
        ignored=("lightning_conv_size",),
    )

    def __post_init__(self) -> None:
        if self.num_kv_heads == self.num_heads:
            object.__setattr__(self, "num_kv_heads", None)  # equal plans compare equal
        check_groups(self.num_heads, self.kv_heads)

    @property
    def query_scale(self) -> float:
        scales = {"1/sqrt(d)": self.head_dim**-0.5, "1/d": 1.0 / self.head_dim, "1": 1.0}
        scaling = self.rope_scaling
        return scales[self.scale] * (1.0 if scaling is None else scaling.logit_factor)

    def module(self, **fields: Any) -> "LightningMixer":
        return LightningMixer(self, **fields)

    def init_state(self, batch: int, capacity: int, dtype: DTypeLike) -> LightningState:
        """Zeros, of the same size whatever the capacity."""
        shape = (batch, self.num_heads, self.head_dim, self.head_dim)
        return LightningState(constrain(jnp.zeros(shape, jnp.float32), RECURRENT_AXES))

    def mixing_flops(self, tokens: int, before: int) -> float:
        """4 N H^2 per token, the recurrent form: what a chunked kernel computes beyond that is its own choice."""
        return 4.0 * tokens * self.num_heads * self.head_dim**2

    def state_bytes(self, capacity: int, itemsize: int) -> int:
        """N H^2 numbers in float32."""
        return 4 * self.num_heads * self.head_dim**2

    @classmethod
    def from_softmax(cls, softmax: SoftmaxSpec) -> "LightningSpec":
        """As many heads as queries have; rotary positions and biases are taken over.

        Queries and keys are normed whether the teacher norms them or not.
        """
        return cls(
            softmax.num_heads,
            softmax.head_dim,
            softmax.rope_theta,
            rope_scaling=softmax.rope_scaling,
            qkv_bias=softmax.qkv_bias,
        )

    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """See `heads_from_softmax`; the joint norm starts at one, the gate as in the official code uniform in
        +-1/sqrt(D).
        """
        taken = heads_from_softmax(self, params)
        if self.output_norm:
            taken["output_norm"] = {"scale": jnp.ones((self.num_heads, self.head_dim))}
        if self.output_gate:
            shape = params["q"]["kernel"].shape
            bound = 1.0 / math.sqrt(shape[0])
            taken["gate"] = {"kernel": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}
        return taken

    def to_hf(self) -> dict[str, Any]:
        return {**super().to_hf(), "lightning_nkv": self.kv_heads}

    @classmethod
    def hf_problems(cls, fields: Mapping[str, Any]) -> Iterator[str]:
        yield from group_problems(fields, "lightning_nh", "lightning_nkv")
        yield from rotary_problems(fields, "lightning")
        if fields.get("lightning_scale") not in (*get_args(Scale), None):
            yield f"lightning_scale {fields['lightning_scale']!r} is none of {get_args(Scale)}"


def slopes(num_heads: int) -> np.ndarray:
    """Decay rate of each head, the same in every layer: 2^(-8 i / N), i = 1 .. N, for N a power of two.

    Otherwise those of the next lower power P, then every second one of the list for 2 P until N are found.

    Source: ALiBi (arXiv 2108.12409); arXiv 2601.22156 uses them unscaled by the layer's depth.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    first = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return np.asarray((first + between)[:num_heads], np.float32)


class LightningMixer(nn.Module):
    """Lightning attention over the earlier tokens of the same segment.

    q, k, v = norm(W_q x), norm(W_k x), W_v x, q and k rotated, k and v repeated for their query heads
    s_t = exp(-slope) s_(t-1) + k_t v_t^T;  o_t = scale q_t s_t
    y = W_o (norm over all heads(o) * sigmoid(W_gate x))

    Source: arXiv 2401.04658 (lightning attention); arXiv 2601.22156 (norms, gate, rotary positions).
    """

    spec: LightningSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Hidden | Normed, layout: TokenLayout, state: LightningState | None
    ) -> tuple[Hidden | Product, LightningState | None]:
        spec, count = self.spec, self.spec.num_heads
        rotary = (spec.head_dim, spec.rope_theta, spec.rope_scaling)
        angles = rotary_angles(layout.positions, *rotary)
        q, k, v, gate = project_in(self, x)
        k, v = (to_query_heads(y, count) for y in (k, v))
        heads, after = _attend(spec, (q, k, v), head_norms(self), angles, layout, state)
        joint = None
        if spec.output_norm:
            shape, names = (count, spec.head_dim), (axes.HEADS, axes.HEAD_DIM)
            joint = RMSNorm(shape, names, self.norm_eps, name="output_norm").before_product()
        y = project_out(self, x, heads, gate, norm=joint)
        return y, None if state is None else LightningState(after)


def _attend(
    spec: LightningSpec,
    heads: tuple[Queries, Keys, Keys],
    norms: tuple[RMSNorm, RMSNorm] | tuple[None, None],
    angles: Angles | None,
    layout: TokenLayout,
    state: LightningState | None,
) -> tuple[Queries, Float[Array, "B N H H"]]:
    """Outputs of any number of tokens, and the recurrent state after them; one token after a state is one kernel."""
    q_norm, k_norm = norms
    segment_ids = None if layout.single_segment else layout.segment_ids
    before = None if state is None else state.recurrent_state
    log_decay = jnp.negative(table(jnp.asarray(slopes(spec.num_heads))))
    options: dict[str, Any] = {"scale": spec.query_scale, "mesh_axes": op_axes(heads[0])}
    q, k, v = heads
    if before is not None and q.shape[1] == 1:
        out, after = lightning_step(
            *(q[:, 0], k[:, 0], v[:, 0], log_decay, before),
            norms=q_norm and k_norm and HeadNorms(q_norm.scale, k_norm.scale, q_norm.eps),
            angles=None if angles is None else angles[:, 0],
            real=None if segment_ids is None else segment_ids[:, 0] != 0,
            reset=layout.reset_state,
            **options,
        )
        return out[:, None], after
    q = norm_and_rotate(q, q_norm, angles)
    k = norm_and_rotate(k, k_norm, angles, axes.KV_HEADS)
    if before is not None and layout.reset_state is not None:
        before = jnp.where(layout.reset_state[:, None, None, None], 0.0, before)
    return lightning_attention(q, k, v, log_decay, before, segment_ids, **options)
