"""Lightning attention on NVIDIA GPUs: spans of tokens in parallel, so that few heads fill the chip.

Forward, with every state [H, H] in float32:
1. `span_states`: what each span adds to the state at its end; reads keys and values, and of those only
   what has not decayed to 0 by then.
2. A product with the decays between spans turns that into the state before each span (XLA).
3. `attend`: outputs of every span from the state before it.
Backward mirrors 1 and 2 with queries and output gradients, then runs `attend` three times: for the
gradients of the queries (do, v, k in place of q, k, v), and from the last token to the first for
those of the values and of the keys. No array of scores or of chunk states goes through HBM; at B1
T16384 N16 H128 in bfloat16, where one such array is 67 MB, forward moves at most 0.42 GB and
backward 0.98 GB.

In two terms, two blocks of threads share a multiprocessor, each with half the columns of a state:
one multiplies while the other rounds, masks or waits. What both read, one finds in the cache. One
term leaves less to wait for, and float32 no room: there a block owns a whole state and is alone.

Written in Pallas for Triton; `pallas_kernels.products` says why. The blocks of a
multiprocessor use up to 226 KiB of shared memory and all registers (XLA of JAX 0.10.2, sm_90, H128).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import gpu_kernels, segments
from pallas_kernels.lightning_attention.gpu_tiles import Decay, GpuPlan, Segments
from pallas_kernels.lightning_attention.reference import Operands, Results, State, Tokens
from pallas_kernels.products import Precision, product

MAX_WIDTH = 128  # a wider state does not fit into the registers of a multiprocessor
BLOCKS = 128  # an H100 has 132 multiprocessors, and the registers of each hold one state
CHUNK = 64  # the most for which the scores leave the state in registers
MIN_CHUNKS = 2  # of a span: with one, the spans' states would be as much to read as their tokens
UNDERFLOW = -104.0  # exp of less is 0 in float32


def gpu(operands: Operands, *, scale: float, precision: Precision = "split") -> Results:
    """The kernels above; arguments and results as `lightning_attention`.

    bfloat16 inputs are exact in the matrix units; float32 inputs are multiplied in three TF32 products.

    Raises:
      UnsupportedError: not a Hopper or Blackwell GPU, heads that are too wide, types that are
        neither all bfloat16 nor all float32, or a mesh.
    """
    reason = unsupported_reason(operands)
    dispatch.require("lightning_attention", "gpu", reason, "chunked")
    q, k, v, log_decay, state, segment_ids = operands
    plan = _plan(q, scale, terms=2 if precision == "split" else 1)
    packed = None if segment_ids is None else _packed(segment_ids, plan)
    return _lightning(plan, (q, k, v), state, Decay(packed, log_decay))


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    width = operands.q.shape[3]
    if width > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide, and these are {width}"
    reason = dispatch.dtypes_unsupported_reason("q, k, v", *operands[:3])
    return reason or dispatch.gpu_unsupported_reason(dispatch.HOPPER)


def _plan(q: Tokens, scale: float, *, terms: int) -> GpuPlan:
    batch, length, heads, width = q.shape
    all_chunks = pl.cdiv(length, CHUNK)
    spans = max(1, min(round(BLOCKS / (batch * heads)), all_chunks // MIN_CHUNKS))
    chunks = pl.cdiv(all_chunks, spans)
    spans = pl.cdiv(all_chunks, chunks)
    parts = 2 if width > 64 and terms == 2 and q.dtype == jnp.bfloat16 else 1
    cut = CHUNK, chunks, spans, parts
    return GpuPlan(batch, length, heads, width, *cut, scale, terms, dispatch.interprets())


def _packed(segment_ids: Int[Array, "B T"], plan: GpuPlan) -> Segments:
    room = ((0, 0), (1, plan.spans * plan.tokens - plan.length))
    marks = segments.is_real(segment_ids), segments.starts_segment(segment_ids)
    return Segments(*(jnp.cumsum(jnp.pad(x.astype(jnp.int32), room), axis=1) for x in marks))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lightning(
    plan: GpuPlan, tokens: tuple[Tokens, Tokens, Tokens], state: State, decay: Decay
) -> Results:
    return _forward(plan, tokens, state, decay)[0]


def _forward(
    plan: GpuPlan, tokens: tuple[Tokens, Tokens, Tokens], state: State, decay: Decay
) -> tuple[Results, Any]:
    before = _carried(plan, decay, *tokens[1:], state, backward=False)
    return gpu_kernels.attend(plan, decay, tokens, before), (tokens, before, decay)


def _backward(plan: GpuPlan, residuals: Any, cotangents: Results) -> tuple[Any, ...]:
    (q, k, v), before, decay = residuals
    d_out, d_last = cotangents
    after = _carried(plan, decay, q, d_out, d_last, backward=True)
    attend = functools.partial(gpu_kernels.attend, plan, decay)
    d_q, _ = attend((d_out, v, k), before, transposed=True)
    d_v, d_state = attend((k, q, d_out), after, backward=True)
    d_k, _ = attend((v, d_out, q), after, backward=True, transposed=True)
    return (d_q, d_k, d_v), d_state, None


_lightning.defvjp(_forward, _backward)


def _carried(
    plan: GpuPlan, decay: Decay, a: Tokens, b: Tokens, edge: State, *, backward: bool
) -> Float[Array, "B N S H H"]:
    """State before each of S spans; if backward, gradient of the state after each."""
    if plan.spans == 1:
        return edge[:, :, None]
    # The token before which each span starts; if backward, ends.
    boundaries = plan.tokens * (jnp.arange(plan.spans, dtype=jnp.int32) + int(backward))
    needed = _needed(plan, decay, boundaries, backward=backward)
    span_states = gpu_kernels.span_states(plan, decay, a, b, edge, needed, backward=backward)
    count, segment = _at(plan, decay, boundaries)
    gaps = count[:, :, None] - count[:, None, :]
    steps = jnp.maximum(-gaps if backward else gaps, 0).astype(jnp.float32)
    ordered = jnp.triu if backward else jnp.tril
    seen = ordered(segment[:, :, None] == segment[:, None, :])[:, None]
    decays = jnp.where(seen, jnp.exp(decay.log[None, :, None, None] * steps[:, None]), 0.0)
    decays = jnp.broadcast_to(decays, (*span_states.shape[:3], plan.spans))
    return product("bnij,bnjhv->bnihv", decays, span_states)


def _needed(
    plan: GpuPlan, decay: Decay, boundaries: Int[Array, "S"], *, backward: bool
) -> Int[Array, "B N S"]:
    """How many chunks next to a boundary still count there: not decayed to 0, of its segment."""
    steps = plan.chunk * jnp.arange(plan.chunks, dtype=jnp.int32)
    tokens = boundaries[:, None] + (steps if backward else -steps)[None, :]
    has_span = (tokens < plan.length) if backward else (boundaries > 0)[:, None]
    count, segment = _at(plan, decay, boundaries)
    counts, open_then = _at(plan, decay, jnp.maximum(tokens, 0))
    alive = has_span[None] & (open_then == segment[:, :, None])
    decayed = decay.log[None, :, None, None] * jnp.abs(counts - count[:, :, None])[:, None]
    needed = jnp.sum(alive[:, None] & (decayed > UNDERFLOW), axis=-1, dtype=jnp.int32)
    return jnp.broadcast_to(needed, (plan.batch, *needed.shape[1:]))


def _at(
    plan: GpuPlan, decay: Decay, tokens: Int[Array, "*S"]
) -> tuple[Int[Array, "B *S"], Int[Array, "B *S"]]:
    """Real tokens before the given tokens, and the segment open there."""
    if decay.segments is None:
        return jnp.minimum(tokens, plan.length)[None], jnp.zeros_like(tokens)[None]
    return decay.segments.real_before[:, tokens], decay.segments.segment[:, tokens]
