"""One token of decoding against a long cache, all of whose slots are filled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench import inputs
from pallas_kernels.bench.measure import Case, Inputs, Mode
from pallas_kernels.decode_attention import IMPLEMENTATIONS, decode_attention

# B S N K H: the 2B model at 64K and 512K, and a batch of it.
SHAPES = ((1, 65536, 16, 8, 128), (1, 524288, 16, 8, 128), (8, 32768, 16, 8, 128))
# The quickstart's layer, and one of the 2B model.
SHAPES_ON_CPU = ((1, 8192, 8, 4, 16), (1, 65536, 16, 8, 128))


def cases() -> list[Case]:
    """Every shape and dtype to time."""
    shapes = SHAPES_ON_CPU if inputs.on_cpu() else SHAPES
    return [_case(dtype, shape) for shape in shapes for dtype in inputs.dtypes()]


def _case(dtype: str, shape: tuple[int, int, int, int, int]) -> Case:
    batch, capacity, heads, kv_heads, width = shape
    scale = width**-0.5

    def function(name):
        def call(q, keys, values):
            last = jnp.full(q.shape[:1], keys.shape[1] - 1, jnp.int32)
            return decode_attention(q, keys, values, last, scale=scale, implementation=name)

        return call

    def make_inputs(seed, batch=batch, most=capacity):
        cache = batch, min(capacity, most), kv_heads, width
        *arrays, d_out = inputs.random(seed, dtype, (batch, heads, width), cache, cache, cache)
        return Inputs(tuple(arrays), d_out)

    @functools.cache
    def small():
        return make_inputs(0, 1, inputs.CHECKED_TOKENS)

    def exact(_: str) -> list[np.ndarray]:
        q, keys, values = (np.asarray(jax.device_get(x), np.float64) for x in small().arrays)
        keys, values = (np.repeat(x, heads // kv_heads, axis=2) for x in (keys, values))
        scores = scale * np.einsum("bnh,bsnh->bns", q, keys)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return [np.einsum("bns,bsnh->bnh", weights, values)]

    return Case(
        op="decode_attention",
        shape=f"B{batch} S{capacity} N{heads} K{kv_heads} H{width}",
        dtype=dtype,
        implementations=inputs.worth_timing(IMPLEMENTATIONS),
        modes=(Mode("forward", function, ("o",), 4.0 * batch * heads * width * capacity),),
        make_inputs=make_inputs,
        small=small,
        exact=exact,
    )
