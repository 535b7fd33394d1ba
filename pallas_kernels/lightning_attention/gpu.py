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
from pallas_kernels.lightning_attention.gpu_tiles import GpuPlan, Segments
from pallas_kernels.lightning_attention.reference import Operands
from pallas_kernels.products import Precision, product

MAX_WIDTH = 128  # a wider state does not fit into the registers of a multiprocessor
BLOCKS = 128  # an H100 has 132 multiprocessors, and the registers of each hold one state
TYPES = ("bfloat16", "float32")
CHUNK = 64  # the most for which the scores leave the state in registers
MIN_CHUNKS = 2  # of a span: with one, the spans' states would be as much to read as their tokens
UNDERFLOW = -104.0  # exp of less is 0 in float32

Tokens = Float[Array, "B T N H"]
State = Float[Array, "B N H H"]


def gpu(
    operands: Operands,
    *,
    scale: float,
    precision: Precision = "split",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """The kernels above; arguments and results as `lightning_attention`.

    bfloat16 inputs are exact in the matrix units; what is computed from them is not.

    Args:
      precision: for bfloat16 inputs. "split" multiplies float32 intermediates as the sum of two
        bfloat16 terms: relative error 5e-6 before the outputs are rounded. "one_pass" rounds them:
        2e-3, and half the products. float32 inputs are multiplied in three TF32 products.
    Raises:
      UnsupportedError: not a Hopper or Blackwell GPU, heads that are too wide, types that are
        neither all bfloat16 nor all float32, or a mesh.
    """
    q, k, v, log_decay, state, segment_ids = operands
    dispatch.require("lightning_attention", "gpu", unsupported_reason(q, k, v), "chunked")
    plan = _plan(q, scale, terms=2 if precision == "split" else 1)
    packed = None if segment_ids is None else _packed(segment_ids, plan)
    return _lightning(q, k, v, state, log_decay, packed, plan)


def unsupported_reason(q: Tokens, k: Tokens, v: Tokens) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    if q.shape[3] > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide, and these are {q.shape[3]}"
    reason = dispatch.dtypes_unsupported_reason("q, k, v", q, k, v)
    if reason is not None:
        return reason
    return dispatch.gpu_unsupported_reason(dispatch.HOPPER)


def _plan(q: Tokens, scale: float, *, terms: int) -> GpuPlan:
    batch, length, heads, width = q.shape
    all_chunks = pl.cdiv(length, CHUNK)
    spans = max(1, min(round(BLOCKS / (batch * heads)), all_chunks // MIN_CHUNKS))
    chunks = pl.cdiv(all_chunks, spans)
    spans = pl.cdiv(all_chunks, chunks)
    parts = 2 if width > 64 and terms == 2 and q.dtype == jnp.bfloat16 else 1
    interpret = dispatch.interprets()
    return GpuPlan(
        batch, length, heads, width, CHUNK, chunks, spans, parts, scale, terms, interpret
    )


def _packed(segment_ids: Int[Array, "B T"], plan: GpuPlan) -> Segments:
    real = segments.is_real(segment_ids).astype(jnp.int32)
    starts = segments.starts_segment(segment_ids).astype(jnp.int32)
    room = ((0, 0), (1, plan.spans * plan.tokens - plan.length))
    return Segments(*(jnp.cumsum(jnp.pad(x, room), axis=1) for x in (real, starts)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _lightning(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    state: State,
    log_decay: Float[Array, "N"],
    packed: Segments | None,
    plan: GpuPlan,
) -> tuple[Tokens, State]:
    return _forward(q, k, v, state, log_decay, packed, plan)[0]


def _forward(
    q: Tokens,
    k: Tokens,
    v: Tokens,
    state: State,
    log_decay: Float[Array, "N"],
    packed: Segments | None,
    plan: GpuPlan,
) -> tuple[tuple[Tokens, State], Any]:
    before = _carried(k, v, state, log_decay, packed, plan, backward=False)
    results = gpu_kernels.attend(q, k, v, before, packed, log_decay, plan)
    return results, (q, k, v, before, packed, log_decay)


def _backward(plan: GpuPlan, residuals: Any, cotangents: tuple[Tokens, State]) -> tuple[Any, ...]:
    q, k, v, before, packed, log_decay = residuals
    d_out, d_last = cotangents
    after = _carried(q, d_out, d_last, log_decay, packed, plan, backward=True)
    rest = after, packed, log_decay, plan
    d_q, _ = gpu_kernels.attend(d_out, v, k, before, packed, log_decay, plan, transposed=True)
    d_v, d_state = gpu_kernels.attend(k, q, d_out, *rest, backward=True)
    d_k, _ = gpu_kernels.attend(v, d_out, q, *rest, backward=True, transposed=True)
    return d_q, d_k, d_v, d_state, None, None


_lightning.defvjp(_forward, _backward)


def _carried(
    a: Tokens,
    b: Tokens,
    edge: State,
    log_decay: Float[Array, "N"],
    packed: Segments | None,
    plan: GpuPlan,
    *,
    backward: bool,
) -> Float[Array, "B N S H H"]:
    """State before each of S spans; if backward, gradient of the state after each."""
    if plan.spans == 1:
        return edge[:, :, None]
    needed = _needed(log_decay, packed, plan, backward=backward)
    span_states = gpu_kernels.span_states(
        a, b, edge, needed, packed, log_decay, plan, backward=backward
    )
    count, segment = _at(packed, _boundaries(plan, backward), plan)
    gaps = count[:, :, None] - count[:, None, :]
    gaps = -gaps if backward else gaps
    ordered = jnp.triu if backward else jnp.tril
    seen = ordered(segment[:, :, None] == segment[:, None, :])[:, None]
    decays = jnp.where(seen, _decay_factor(log_decay, gaps), 0.0)
    decays = jnp.broadcast_to(decays, (*span_states.shape[:3], plan.spans))
    return product("bnij,bnjhv->bnihv", decays, span_states)


def _needed(
    log_decay: Float[Array, "N"], packed: Segments | None, plan: GpuPlan, *, backward: bool
) -> Int[Array, "B N S"]:
    """How many chunks next to a boundary still count there: not decayed to 0, of its segment."""
    boundaries = _boundaries(plan, backward)
    steps = plan.chunk * jnp.arange(plan.chunks, dtype=jnp.int32)
    tokens = boundaries[:, None] + (steps if backward else -steps)[None, :]
    has_span = (tokens < plan.length) if backward else (boundaries > 0)[:, None]
    count, segment = _at(packed, boundaries, plan)
    counts, open_then = _at(packed, jnp.maximum(tokens, 0), plan)
    alive = has_span[None] & (open_then == segment[:, :, None])
    decayed = log_decay[None, :, None, None] * jnp.abs(counts - count[:, :, None])[:, None]
    needed = jnp.sum(alive[:, None] & (decayed > UNDERFLOW), axis=-1, dtype=jnp.int32)
    return jnp.broadcast_to(needed, (plan.batch, *needed.shape[1:]))


def _boundaries(plan: GpuPlan, backward: bool) -> Int[Array, "S"]:
    """The token before which each span starts; if backward, ends."""
    return plan.tokens * (jnp.arange(plan.spans, dtype=jnp.int32) + int(backward))


def _at(
    packed: Segments | None, tokens: Int[Array, "*S"], plan: GpuPlan
) -> tuple[Int[Array, "B *S"], Int[Array, "B *S"]]:
    """Real tokens before the given tokens, and the segment open there."""
    if packed is None:
        return jnp.minimum(tokens, plan.length)[None], jnp.zeros_like(tokens)[None]
    return packed.real_before[:, tokens], packed.segment[:, tokens]


def _decay_factor(
    log_decay: Float[Array, "N"], gaps: Int[Array, "B S S"]
) -> Float[Array, "B N S S"]:
    steps = jnp.maximum(gaps, 0).astype(jnp.float32)
    return jnp.exp(log_decay[None, :, None, None] * steps[:, None])
