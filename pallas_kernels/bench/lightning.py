"""Lightning attention: q and k RMS-normed, and the slopes of HypeNet; whole rows, and one part of a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import UnsupportedError, lightning_attention
from pallas_kernels.bench.op import Inputs, Mode, Op, random
from pallas_kernels.lightning_attention import IMPLEMENTATIONS

ONE_PASS = "gpu_one_pass"  # `gpu` with precision="one_pass"
CHUNK = 64  # of the products that the definition needs at least


def _slopes(heads):
    return -np.exp2(-8 * np.arange(1, heads + 1, dtype=np.float32) / heads)


def _attend(q, k, v, state=None, *, implementation):
    one_pass = implementation == ONE_PASS
    if one_pass and q.dtype != jnp.bfloat16:
        raise UnsupportedError(f"{ONE_PASS} is 'gpu' for {q.dtype}")
    return lightning_attention(
        *(q, k, v, jnp.asarray(_slopes(q.shape[2])), state),
        scale=q.shape[3] ** -0.5,
        implementation="gpu" if one_pass else implementation,
        precision="one_pass" if one_pass else "split",
    )


def _definition(q, k, v, state=None):
    """All pairs of tokens at once.

    o_t = scale (sum_(s <= t) decay^(t - s) (q_t k_s) v_s + decay^(t + 1) q_t m_0)
    """
    steps = jnp.arange(q.shape[1])
    apart = (steps[:, None] - steps[None])[None]
    log_decay = _slopes(q.shape[2]).astype(q.dtype)[:, None]
    decay = jnp.where(apart >= 0, jnp.exp(log_decay[..., None] * jnp.abs(apart)), 0)  # [N T S]
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * decay[None]
    out = jnp.einsum("bnts,bsnh->btnh", scores, v)
    last = jnp.einsum("ns,bsnh,bsng->bnhg", decay[:, -1], k, v)
    if state is not None:
        faded = jnp.exp(log_decay * (steps + 1)[None])  # [N T]
        out += jnp.einsum("nt,btnh,bnhg->btng", faded, q, state)
        last += faded[None, :, -1:, None] * state
    return q.shape[3] ** -0.5 * out, last


@jax.jit
def _normed(x):
    """Divided by its root mean square, as queries and keys are."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True))).astype(x.dtype)


def _inputs(seed, dtype, *shape):
    q, k, v, d_out = random(seed, dtype, *4 * (shape,))
    return Inputs((_normed(q), _normed(k), v), (d_out,))


def _inputs_with_state(seed, dtype, batch, length, heads, width):
    arrays, cotangents = _inputs(seed, dtype, batch, length, heads, width)
    state, d_last = random(seed, "float32", *2 * ((batch, heads, width, width),))
    return Inputs((*arrays, state), (*cotangents, d_last))


def _forward(batch, length, heads, width):
    return 4.0 * batch * length * heads * width * (CHUNK + width)


def _gradient(batch, length, heads, width):
    return 2.0 * batch * length * heads * width * (7 * CHUNK + 6 * width)


WHOLE_ROWS = Op(
    name="lightning_attention",
    axes="B T N H",
    # A row of the 2B model, two, one of the larger models, a training batch, a long context.
    shapes=(
        (1, 16384, 16, 128),
        (2, 16384, 16, 128),
        (1, 16384, 32, 128),
        (12, 512, 16, 128),
        (1, 131072, 16, 128),
    ),
    # The quickstart's layer, the shape of the CPU bar, and a row of the 2B model.
    cpu_shapes=((16, 128, 4, 32), (1, 4096, 8, 64), (1, 2048, 16, 128)),
    implementations=(*IMPLEMENTATIONS, ONE_PASS),
    call=_attend,
    definition=_definition,
    inputs=_inputs,
    modes=(
        Mode("forward", _forward, ("o",)),
        Mode("forward+state", _forward, ("o", "state")),
        Mode("forward+gradient", _gradient, ("o",), ("dq", "dk", "dv")),
    ),
    # The token scan takes at least 8 times as long as the chunks, the tree at most twice.
    cpu_bar=((1, 4096, 8, 64), ("chunked", "recurrent", "associative")),
)
# From a first state to the last, with gradients through both.
PART_OF_A_ROW = dataclasses.replace(
    WHOLE_ROWS,
    shapes=WHOLE_ROWS.shapes[:1],
    cpu_shapes=WHOLE_ROWS.cpu_shapes[:1],
    inputs=_inputs_with_state,
    modes=(Mode("state+gradient", _gradient, ("o", "state"), ("dq", "dk", "dv", "dstate")),),
    cpu_bar=None,
)
