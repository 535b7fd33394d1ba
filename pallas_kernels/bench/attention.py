"""Softmax attention: training, prefill, and one token against a long cache."""

import jax
import jax.numpy as jnp

from pallas_kernels import attention
from pallas_kernels.attention import IMPLEMENTATIONS
from pallas_kernels.bench import inputs
from pallas_kernels.bench.measure import Case, Inputs

# B T S N K H, of the 2B model.
SHAPES = ((12, 512, 512, 16, 8, 128), (1, 8192, 8192, 16, 8, 128), (1, 1, 65536, 16, 8, 128))
# The quickstart's layer, and two more of its width.
SHAPES_ON_CPU = ((32, 128, 128, 4, 2, 32), (1, 2048, 2048, 4, 2, 32), (1, 1, 8192, 4, 2, 32))


def cases() -> list[Case]:
    """Every shape and dtype to time."""
    shapes = SHAPES_ON_CPU if inputs.on_cpu() else SHAPES
    return [_case(dtype, shape) for shape in shapes for dtype in inputs.dtypes()]


def _case(dtype: str, shape: tuple[int, int, int, int, int, int]) -> Case:
    batch, length, keys, heads, kv_heads, width = shape

    def function(name):
        def call(q, k, v):
            slots = None
            if q.shape[1] != k.shape[1]:
                slots = jnp.full(q.shape[:2], k.shape[1] - 1, jnp.int32)
            return attention(q, k, v, scale=width**-0.5, query_slots=slots, implementation=name)

        return call

    def make_inputs(seed, batch=batch, most=keys):
        q = batch, min(length, most), heads, width
        kv = batch, min(keys, most), kv_heads, width
        *arrays, d_out = inputs.random(seed, dtype, q, kv, kv, q)
        return Inputs(tuple(arrays), d_out)

    def definition(q, k, v):
        k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
        scores = width**-0.5 * jnp.einsum("btnh,bsnh->bnts", q, k)
        seen = jnp.tri(q.shape[1], k.shape[1], k.shape[1] - q.shape[1], dtype=bool)[None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    pairs = keys if length == 1 else length * (length + 1) // 2
    products = 2.0 * batch * heads * width * pairs
    return inputs.differentiable(
        op="attention",
        shape=f"B{batch} T{length} S{keys} N{heads} K{kv_heads} H{width}",
        dtype=dtype,
        implementations=inputs.worth_timing(IMPLEMENTATIONS),
        function=function,
        names=("o", "dq", "dk", "dv"),
        flops=(2 * products, 7 * products),
        make_inputs=make_inputs,
        small=lambda: make_inputs(0, 1, inputs.CHECKED_TOKENS),
        definition=definition,
    )
