"""Decaying averages: a mixer as small as one can be, complete in its file."""

import dataclasses
from typing import Any, ClassVar, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params, Queries
from hypenet_jax.model.layers import Initialization, Linear, Normed, Product, project
from hypenet_jax.model.mixers.heads import project_out
from hypenet_jax.model.mixers.softmax import SoftmaxSpec
from hypenet_jax.model.mixers.spec import CheckpointFormat, MixerSpec, MixerState, Rule
from hypenet_jax.model.token_layout import TokenLayout


@no_type_check  # tree functions build states of shapes and shardings
@flax.struct.dataclass
class AverageState(MixerState):
    """The weighted sum of all values so far, float32."""

    total: Float[Array, "B N H"]


@dataclasses.dataclass(frozen=True)
class AverageSpec(MixerSpec):
    """The sum of the values of earlier tokens, each `decay` times the one after it."""

    num_heads: int
    head_dim: int
    decay: float = 0.5

    NAME = "average"
    STATE_AXES: ClassVar = {"total": (axes.BATCH, axes.HEADS, axes.HEAD_DIM)}
    CHECKPOINT = CheckpointFormat(
        kind="average",
        tensors=(
            Rule("mixer/v/kernel", "self_attn.v_proj.weight", "d n h -> (n h) d"),
            Rule("mixer/o/kernel", "self_attn.o_proj.weight", "n h d -> d (n h)"),
        ),
        fields={
            "average_nh": ("num_heads", int),
            "average_head_dim": ("head_dim", int),
            "average_decay": ("decay", float),
        },
    )

    def module(self, **fields: Any) -> "AverageMixer":
        return AverageMixer(self, **fields)

    def init_state(self, batch: int, capacity: int, dtype: DTypeLike) -> AverageState:
        return AverageState(jnp.zeros((batch, self.num_heads, self.head_dim), jnp.float32))

    def mixing_flops(self, tokens: int, before: int) -> float:
        return 2.0 * tokens * self.num_heads * self.head_dim

    def state_bytes(self, capacity: int, itemsize: int) -> int:
        return 4 * self.num_heads * self.head_dim

    @classmethod
    def from_softmax(cls, softmax: SoftmaxSpec) -> "AverageSpec":
        return cls(softmax.num_heads, softmax.head_dim)

    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        group = self.num_heads // params["v"]["kernel"].shape[1]
        values = jnp.repeat(params["v"]["kernel"], group, axis=1)
        return {"v": {"kernel": values}, "o": params["o"]}


class AverageMixer(nn.Module):
    """s_t = decay s_(t-1) + W_v x_t within a segment;  y = W_o s"""

    spec: AverageSpec
    d_model: int
    norm_eps: float
    start: Initialization
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Hidden | Normed, layout: TokenLayout, state: AverageState | None
    ) -> tuple[Hidden | Product, AverageState | None]:
        heads = (self.spec.num_heads, self.spec.head_dim)
        names = (axes.EMBED, axes.HEADS, axes.HEAD_DIM)
        kernel = Linear((self.d_model, *heads), names, self.start.std, name="v").matrix()
        (v,) = project(x, (kernel,))
        v = v.reshape(*v.shape[:2], *heads)
        before = self.spec.init_state(len(v), 0, self.dtype) if state is None else state
        sums, total = _sums(v, layout, before.total, self.spec.decay)
        y = project_out(self, x, sums, None)
        return y, None if state is None else AverageState(total)


def _sums(
    v: Queries, layout: TokenLayout, total: Float[Array, "B N H"], decay: float
) -> tuple[Queries, Float[Array, "B N H"]]:
    """The sum after every token, and after the last; padding changes nothing, a new segment starts at zero."""
    segment_ids = layout.segment_ids
    if segment_ids is None:
        segment_ids = jnp.ones(v.shape[:2], jnp.int32)
    if layout.reset_state is not None:
        total = jnp.where(layout.reset_state[:, None, None], 0.0, total)

    def step(carry: Any, token: Any) -> tuple[Any, Any]:
        total, open_segment = carry
        value, segment = token
        real = segment != 0
        new = real & (open_segment != 0) & (segment != open_segment)
        total = jnp.where(new[:, None, None], 0.0, total)
        total = jnp.where(real[:, None, None], decay * total + value, total)
        return (total, jnp.where(real, segment, open_segment)), total

    by_time = (v.astype(jnp.float32).swapaxes(0, 1), segment_ids.T)
    start = (total, jnp.zeros(len(v), jnp.int32))
    (total, _), sums = jax.lax.scan(step, start, by_time)
    return sums.swapaxes(0, 1).astype(v.dtype), total
