"""What gated delta net and Kimi delta attention do alike around their recurrence; only those mixers call it."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Keys, Params, Queries
from hypenet_jax.model.layers import parameter
from hypenet_jax.model.mixers.heads import heads_from_softmax, op_axes
from hypenet_jax.model.mixers.spec import ATTENTION_RULES, MixerSpec, MixerState, Rule
from hypenet_jax.model.short_conv import WIDTH, short_conv
from hypenet_jax.model.token_layout import TokenLayout
from hypenet_jax.sharding import constrain
from pallas_kernels import gated_delta_rule

RECURRENT_AXES = (axes.BATCH, axes.HEADS, axes.HEAD_DIM, axes.HEAD_DIM)


# Not checked at construction: tree functions build states of shapes, shardings and stacked layers.
@no_type_check
@flax.struct.dataclass
class DeltaState(MixerState):
    """State of every head, [key dim, value dim], float32; and where there are short convolutions their last inputs."""

    recurrent_state: Float[Array, "B N H H"]
    q_inputs: Float[Array, "B I N H"] | None = None
    k_inputs: Float[Array, "B I K H"] | None = None
    v_inputs: Float[Array, "B I K H"] | None = None


RULES = (
    *ATTENTION_RULES,
    Rule("mixer/output_norm/scale", "self_attn.o_norm.weight", "h -> h"),
    Rule("mixer/q_conv/taps", "self_attn.q_conv1d.weight", "n h w -> (n h) () w", "short_conv"),
    Rule("mixer/k_conv/taps", "self_attn.k_conv1d.weight", "k h w -> (k h) () w", "short_conv"),
    Rule("mixer/v_conv/taps", "self_attn.v_conv1d.weight", "k h w -> (k h) () w", "short_conv"),
)
"""Tensors of both mixers."""


class DeltaSpec(MixerSpec):
    """The state of both mixers, and what it costs."""

    short_conv: bool

    STATE_AXES: ClassVar = {
        "recurrent_state": RECURRENT_AXES,
        "q_inputs": (axes.BATCH, None, axes.HEADS, axes.HEAD_DIM),
        "k_inputs": (axes.BATCH, None, axes.KV_HEADS, axes.HEAD_DIM),
        "v_inputs": (axes.BATCH, None, axes.KV_HEADS, axes.HEAD_DIM),
    }

    def init_state(self, batch: int, capacity: int, dtype: DTypeLike) -> DeltaState:
        """Zeros, of the same size whatever the capacity."""
        shape = (batch, self.num_heads, self.head_dim, self.head_dim)
        recurrent = constrain(jnp.zeros(shape, jnp.float32), RECURRENT_AXES)
        inputs = {}
        for name, heads in self.convolved_heads().items():
            zeros = jnp.zeros((batch, WIDTH - 1, heads, self.head_dim), dtype)
            inputs[f"{name}_inputs"] = constrain(zeros, self.STATE_AXES[f"{name}_inputs"])
        return DeltaState(recurrent, **inputs)

    def state_bytes(self, capacity: int, itemsize: int) -> int:
        """N H^2 numbers in float32, and the inputs of the convolutions."""
        inputs = (WIDTH - 1) * sum(self.convolved_heads().values()) * self.head_dim
        return 4 * self.num_heads * self.head_dim**2 + inputs * itemsize

    def mixing_flops(self, tokens: int, before: int) -> float:
        """6 N H^2 per token, the recurrent form: what the state holds for k, its correction, and what q reads."""
        return 6.0 * tokens * self.num_heads * self.head_dim**2

    def convolved_heads(self) -> dict[str, int]:
        """How many heads each of queries, keys and values has that is convolved."""
        heads = {"q": self.num_heads, "k": self.kv_heads, "v": self.kv_heads}
        return heads if self.short_conv else {}


def taken_from_softmax(spec: DeltaSpec, params: Params, key: jax.Array) -> dict[str, Any]:
    """See `heads_from_softmax`; the norm of outputs starts at one, filters as torch's, uniform in +-1/sqrt(W)."""
    taken = heads_from_softmax(spec, params)
    shapes = {f"{x}_conv": (n, spec.head_dim, WIDTH) for x, n in spec.convolved_heads().items()}
    filters = uniform(key, shapes, lambda shape: shape[-1] ** -0.5)
    taken |= {name: {"taps": taps} for name, taps in filters.items()}
    return {**taken, "output_norm": {"scale": jnp.ones(spec.head_dim)}}


def uniform(
    key: jax.Array,
    shapes: Mapping[str, tuple[int, ...]],
    bound: Callable[[tuple[int, ...]], float],
) -> dict[str, Float[Array, "..."]]:
    """Arrays of these shapes, uniform up to a bound that depends on the shape."""
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, minval=-bound(shape), maxval=bound(shape))
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


class Filter(nn.Module):
    """The filters of a short convolution, one per channel, oldest token first."""

    heads: int
    axis: str
    head_dim: int

    def setup(self) -> None:
        start = nn.initializers.uniform(2 * WIDTH**-0.5)
        centred = lambda *args: start(*args) - WIDTH**-0.5  # noqa: E731
        shape, names = (self.heads, self.head_dim, WIDTH), (self.axis, axes.HEAD_DIM, axes.HEAD_DIM)
        self.taps = parameter(self, "taps", centred, shape, names)


def convolved(
    mixer: nn.Module,
    heads: tuple[Queries, Keys, Keys],
    layout: TokenLayout,
    state: DeltaState | None,
) -> tuple[tuple[Queries, Keys, Keys], dict[str, Any]]:
    """Queries, keys and values after their short convolutions, if the mixer has them, and the inputs to remember."""
    convolved_heads = mixer.spec.convolved_heads()
    if not convolved_heads:
        return heads, {}
    results, inputs = [], {}
    names = (axes.HEADS, axes.KV_HEADS, axes.KV_HEADS)
    for name, x, axis in zip(convolved_heads, heads, names, strict=True):
        taps = Filter(x.shape[2], axis, x.shape[3], name=f"{name}_conv").taps
        before = None if state is None else getattr(state, f"{name}_inputs")
        y, inputs[f"{name}_inputs"] = short_conv(x, taps, before, layout)
        results.append(y)
    return (results[0], results[1], results[2]), inputs


def unit_length(x: Queries) -> Queries:
    """x / sqrt(sum x^2 + 1e-6) of every head, in float32."""
    wide = x.astype(jnp.float32)
    size = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(size + 1e-6)).astype(x.dtype)


class DecayRate(nn.Module):
    """The natural logarithm of a decay, -exp(log_rate) softplus(x + bias), float32; a rate per head.

    Attributes:
      shape, names: of the bias, heads first, and the logical name of each of its axes.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]

    def setup(self) -> None:
        self.log_rate = parameter(self, "log_rate", log_rates, self.shape[:1], self.names[:1])
        self.bias = parameter(self, "bias", rate_biases, self.shape, self.names)

    def __call__(self, x: Float[Array, "B T *N"]) -> Float[Array, "B T *N"]:
        steps = jax.nn.softplus(x.astype(jnp.float32) + self.bias[None, None])
        rate = jnp.exp(self.log_rate).reshape(1, 1, -1, *(1,) * (x.ndim - 3))
        return -rate * steps


def log_rates(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "N"]:
    """Of rates uniform in 1 to 16, as in Mamba-2."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def rate_biases(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "..."]:
    """Whose softplus is log-uniform in 0.001 to 0.1, likewise."""
    steps = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(0.001), math.log(0.1)))
    return steps + jnp.log(-jnp.expm1(-steps))


def new_rate(key: jax.Array, shape: tuple[int, ...]) -> dict[str, Float[Array, "..."]]:
    """Parameters of a `DecayRate` as it starts."""
    first, second = jax.random.split(key)
    return {"log_rate": log_rates(first, shape[:1]), "bias": rate_biases(second, shape)}


def attend(
    heads: tuple[Queries, Queries, Queries],
    log_decay: Float[Array, "B T N *E"],
    beta: Float[Array, "B T N"],
    layout: TokenLayout,
    state: DeltaState | None,
) -> tuple[Queries, Float[Array, "B N H H"]]:
    """Outputs of any number of tokens, and the recurrent state after them."""
    q, k, v = heads
    before = None if state is None else state.recurrent_state
    if before is not None and layout.reset_state is not None:
        before = jnp.where(layout.reset_state[:, None, None, None], 0.0, before)
    recur = functools.partial(gated_delta_rule, scale=q.shape[3] ** -0.5, mesh_axes=op_axes(q))
    segment_ids = None if layout.single_segment else layout.segment_ids
    return recur(q, k, v, log_decay, beta, before, segment_ids)
