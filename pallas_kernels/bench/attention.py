"""Softmax attention: training, prefill, and one token against a long cache, all of whose slots are filled."""

import jax
import jax.numpy as jnp

from pallas_kernels import attention, decode_attention
from pallas_kernels.attention import IMPLEMENTATIONS
from pallas_kernels.bench.op import Inputs, Mode, Op, forward_and_gradient, random
from pallas_kernels.decode_attention import IMPLEMENTATIONS as DECODE_IMPLEMENTATIONS


def _attend(q, k, v, *, implementation):
    slots = None
    if q.shape[1] != k.shape[1]:
        slots = jnp.full(q.shape[:2], k.shape[1] - 1, jnp.int32)
    scale = q.shape[-1] ** -0.5
    return attention(q, k, v, scale=scale, query_slots=slots, implementation=implementation)


def _decode(q, keys, values, *, implementation):
    last = jnp.full(q.shape[:1], keys.shape[1] - 1, jnp.int32)
    scale = q.shape[-1] ** -0.5
    return decode_attention(q, keys, values, last, scale=scale, implementation=implementation)


def _definition(q, k, v):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = q.shape[-1] ** -0.5 * jnp.einsum("btnh,bsnh->bnts", q, k)
    seen = jnp.tri(q.shape[1], k.shape[1], k.shape[1] - q.shape[1], dtype=bool)[None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _inputs(seed, dtype, batch, length, keys, heads, kv_heads, width):
    q, kv = (batch, length, heads, width), (batch, keys, kv_heads, width)
    *arrays, d_out = random(seed, dtype, q, kv, kv, q)
    return Inputs(tuple(arrays), (d_out,))


def _decode_inputs(seed, dtype, batch, slots, heads, kv_heads, width):
    (q, *cache), cotangents = _inputs(seed, dtype, batch, 1, slots, heads, kv_heads, width)
    return Inputs((q[:, 0], *cache), cotangents)


def _product(batch, length, keys, heads, kv_heads, width):
    """Operations of the scores, as many as of their sum of values."""
    pairs = keys if length == 1 else length * (length + 1) // 2
    return 2.0 * batch * heads * width * pairs


ATTENTION = Op(
    name="attention",
    axes="B T S N K H",
    # Of the 2B model.
    shapes=((12, 512, 512, 16, 8, 128), (1, 8192, 8192, 16, 8, 128), (1, 1, 65536, 16, 8, 128)),
    # The quickstart's layer, and two more of its width.
    cpu_shapes=((32, 128, 128, 4, 2, 32), (1, 2048, 2048, 4, 2, 32), (1, 1, 8192, 4, 2, 32)),
    implementations=IMPLEMENTATIONS,
    call=_attend,
    definition=_definition,
    inputs=_inputs,
    modes=forward_and_gradient("o", "dq dk dv", _product, 2, 7),
)
DECODE_ATTENTION = Op(
    name="decode_attention",
    axes="B S N K H",
    # The 2B model at 64K and 512K, and a batch of it.
    shapes=((1, 65536, 16, 8, 128), (1, 524288, 16, 8, 128), (8, 32768, 16, 8, 128)),
    # The quickstart's layer, and one of the 2B model.
    cpu_shapes=((1, 8192, 8, 4, 16), (1, 65536, 16, 8, 128)),
    implementations=DECODE_IMPLEMENTATIONS,
    call=_decode,
    definition=lambda q, keys, values: _definition(q[:, None], keys, values)[:, 0],
    inputs=_decode_inputs,
    modes=(Mode("forward", lambda b, s, *heads: 2 * _product(b, 1, s, *heads), ("o",)),),
)
