"""Lightning attention: what it is (`LightningSpec`), what it remembers (`LightningState`), what it does."""

import dataclasses
import math
from typing import Literal, no_type_check

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Angles, Hidden, Keys, Queries
from hypenet_jax.model.layers import Initialization, RMSNorm
from hypenet_jax.model.mixers.heads import (
    HeadNorm,
    head_angles,
    head_norms,
    op_axes,
    project_in,
    project_out,
)
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import constrain
from pallas_kernels import HeadNorms, Norm, lightning_attention, lightning_step, rotate


@dataclasses.dataclass(frozen=True)
class LightningSpec:
    """Linear attention whose memory fades by a fixed factor per head, exp(-slope_h).

    Attributes:
      num_heads: heads of queries, keys and values alike.
      head_dim: width of one head.
      rope_theta: base of the rotary positions; None for no positions.
      scale: factor on the queries, by the official names.
      qk_norm: RMS norm of every head's queries and keys.
      output_norm: one RMS norm over all heads jointly, before the gate.
      output_gate: multiply the outputs by sigmoid(W x), x the mixer's input.
    """

    num_heads: int
    head_dim: int
    rope_theta: float | None
    scale: Literal["1/sqrt(d)", "1/d", "1"] = "1/sqrt(d)"
    qk_norm: bool = True
    output_norm: bool = True
    output_gate: bool = True

    @property
    def query_scale(self) -> float:
        return {"1/sqrt(d)": self.head_dim**-0.5, "1/d": 1.0 / self.head_dim, "1": 1.0}[self.scale]


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class LightningState:
    """The memory of every head, [key dim, value dim], float32: bfloat16 loses 2 % on the slowest head."""

    recurrent_state: Float[Array, "B N H H"]


MEMORY_AXES = (axes.BATCH, axes.HEADS, axes.HEAD_DIM, axes.HEAD_DIM)


def empty_memory(spec: LightningSpec, batch: int) -> LightningState:
    """The memory before the first token: N * H * H float32 per row, whatever the length."""
    shape = (batch, spec.num_heads, spec.head_dim, spec.head_dim)
    return LightningState(constrain(jnp.zeros(shape, jnp.float32), MEMORY_AXES))


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
    """Lightning attention over the earlier tokens of the same document.

    q, k, v = norm(W_q x), norm(W_k x), W_v x, rotated;  m_t = exp(-slope) m_(t-1) + k_t v_t^T;  o_t = scale q_t m_t
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
        self,
        x: Hidden,
        layout: TokenLayout,
        state: LightningState | None,
        norm: Norm | None = None,
        residual: Hidden | None = None,
    ) -> tuple[Hidden, LightningState | None]:
        spec, count = self.spec, self.spec.num_heads
        angles = head_angles(layout, spec.head_dim, spec.rope_theta)
        q, k, v, gate = project_in(self, x, count, count, norm=norm)
        norms = head_norms(self) if spec.qk_norm else None
        if state is not None and x.shape[1] == 1:
            heads, memory = _step(spec, (q, k, v), norms, angles, layout, state)
        else:
            heads, memory = _attend(spec, (q, k, v), norms, angles, layout, state)
        joint = None
        if spec.output_norm:
            shape, names = (count, spec.head_dim), (axes.HEADS, axes.HEAD_DIM)
            joint = RMSNorm(shape, names, self.norm_eps, name="output_norm").before_product()
        y = project_out(self, heads, gate, norm=joint, residual=residual)
        return y, None if state is None else LightningState(memory)


def _attend(
    spec: LightningSpec,
    heads: tuple[Queries, Keys, Keys],
    norms: tuple[HeadNorm, HeadNorm] | None,
    angles: Angles | None,
    layout: TokenLayout,
    state: LightningState | None,
) -> tuple[Queries, Float[Array, "B N H H"]]:
    """Outputs of any number of tokens, and the memory after them."""
    q, k, v = heads
    if norms is not None:
        q, k = norms[0](q, angles), norms[1](k, angles)
    elif angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return lightning_attention(
        q,
        k,
        v,
        jnp.negative(slopes(spec.num_heads)),
        None if state is None else _remember(state.recurrent_state, layout),
        None if layout.single_segment else layout.segment_ids,
        scale=spec.query_scale,
        mesh_axes=op_axes(q),
    )


def _remember(memory: Float[Array, "B N H H"], layout: TokenLayout) -> Float[Array, "B N H H"]:
    """The memory of rows that go on with their document; zeros where a new one begins."""
    if layout.reset_state is None:
        return memory
    return jnp.where(layout.reset_state[:, None, None, None], 0.0, memory)


def _step(
    spec: LightningSpec,
    heads: tuple[Queries, Keys, Keys],
    norms: tuple[HeadNorm, HeadNorm] | None,
    angles: Angles | None,
    layout: TokenLayout,
    state: LightningState,
) -> tuple[Queries, Float[Array, "B N H H"]]:
    """`_attend` for one token after a state: one kernel where it can be."""
    q, k, v = (x[:, 0] for x in heads)
    documents = None if layout.single_segment else layout.segment_ids
    out, memory = lightning_step(
        q,
        k,
        v,
        jnp.negative(slopes(spec.num_heads)),
        state.recurrent_state,
        scale=spec.query_scale,
        norms=None if norms is None else HeadNorms(norms[0].scale, norms[1].scale, norms[0].eps),
        angles=None if angles is None else angles[:, 0],
        real=None if documents is None else documents[:, 0] != 0,
        reset=layout.reset_state,
        mesh_axes=op_axes(heads[0]),
    )
    return out[:, None], memory
