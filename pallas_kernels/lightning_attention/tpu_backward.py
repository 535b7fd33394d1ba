"""The backward kernels of lightning attention on TPU.

With P = q k^T * within, D = scale * do v^T * within, S the memory before the chunk and G the
cotangent of the memory after it:

  dq = D k + scale * (do S^T) * entering           dk = D^T q + (v G^T) * leaving
  dv = scale * P^T do + (k G) * leaving            dS = across * G + scale * (q * entering)^T do

S is made with the chunks and G against them. Where the forward pass saved S, one kernel does all in
reverse; where it did not, one kernel makes S again in order and gives dq, another the rest in
reverse.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.lightning_attention import tpu_chunk
from pallas_kernels.lightning_attention.tpu_chunk import Blocks, Factors, Plan, Refs, product

Tokens = Float[Array, "B T W"]
Chunk = Float[Array, "C H"]
Memory = Float[Array, "H H"]


def from_saved(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    memory_cotangent: Float[Array, "B N H H"],
    saved: Float[Array, "B N M H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
) -> tuple[Tokens, Tokens, Tokens, Float[Array, "B N H H"]]:
    """Cotangents of q, k, v and the first memory in one pass from the last chunk to the first.

    tokens are q, k, v and the cotangent of the outputs; saved is the memory before every chunk.
    """
    blocks = Blocks(plan, backward=True)
    return tpu_chunk.call(
        functools.partial(_from_saved_kernel, plan),
        plan,
        (log_decay, tokens, memory_cotangent, saved, marks),
        in_specs=(
            blocks.log_decay,
            (blocks.tokens,) * 4,
            blocks.memory,
            blocks.memories,
            (blocks.marks,) * len(marks),
        ),
        out_shape=(*map(_like, tokens[:3]), _like(memory_cotangent)),
        out_specs=(*(blocks.tokens,) * 3, blocks.memory),
        squares=5,
        memories=4,
        name="lightning_attention_backward",
    )


def from_nothing(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens, Tokens],
    memory_cotangent: Float[Array, "B N H H"],
    state: Float[Array, "B N H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
) -> tuple[Tokens, Tokens, Tokens, Float[Array, "B N H H"]]:
    """As `from_saved`, with two kernels that need only the first memory."""
    dq, _ = tpu_chunk.call(
        functools.partial(_queries_kernel, plan),
        plan,
        (log_decay, tokens[1:], state, marks),
        in_specs=_specs(blocks := Blocks(plan), 3, marks),
        out_shape=(_like(tokens[0]), _like(state)),
        out_specs=(blocks.tokens, blocks.memory),
        squares=2,
        memories=2,
        name="lightning_attention_backward_queries",
    )
    dk, dv, state_cotangent = tpu_chunk.call(
        functools.partial(_keys_kernel, plan),
        plan,
        (log_decay, tokens, memory_cotangent, marks),
        in_specs=_specs(blocks := Blocks(plan, backward=True), 4, marks),
        out_shape=(_like(tokens[1]), _like(tokens[2]), _like(state)),
        out_specs=(blocks.tokens, blocks.tokens, blocks.memory),
        squares=4,
        memories=3,
        name="lightning_attention_backward_keys",
    )
    return dq, dk, dv, state_cotangent


def _specs(blocks: Blocks, tokens: int, marks: tuple[Float[Array, "B 8 S"], ...]) -> Any:
    marked = (blocks.marks,) * len(marks)
    return blocks.log_decay, (blocks.tokens,) * tokens, blocks.memory, marked


def _like(x: Float[Array, "..."]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _from_saved_kernel(
    plan: Plan,
    log_decay_ref: Any,
    tokens_refs: Refs,
    cotangent_ref: Any,
    saved_ref: Any,
    marks_refs: Refs,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    carried_ref: Any,
    within_refs: Refs,
) -> None:
    tpu_chunk.start(plan, log_decay_ref, cotangent_ref, carried_ref, within_refs)
    index = plan.num_chunks - 1 - pl.program_id(2)
    factors = tpu_chunk.factors(plan, log_decay_ref, index, marks_refs, within_refs)
    q, k, v, do = tpu_chunk.load(plan, index, marks_refs, tokens_refs)
    dscores = _dscores(plan, factors, v, do)
    dq_ref[...] = _dq(plan, factors, dscores, k, do, saved_ref[...]).astype(dq_ref.dtype)
    dk, dv, carried = _keys(plan, factors, dscores, (q, k, v, do), carried_ref[...])
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
    carried_ref[...] = carried


def _queries_kernel(
    plan: Plan,
    log_decay_ref: Any,
    tokens_refs: Refs,
    state_ref: Any,
    marks_refs: Refs,
    dq_ref: Any,
    memory_ref: Any,
    within_refs: Refs,
) -> None:
    tpu_chunk.start(plan, log_decay_ref, state_ref, memory_ref, within_refs)
    index, memory = pl.program_id(2), memory_ref[...]
    factors = tpu_chunk.factors(plan, log_decay_ref, index, marks_refs, within_refs)
    k, v, do = tpu_chunk.load(plan, index, marks_refs, tokens_refs)
    dscores = _dscores(plan, factors, v, do)
    dq_ref[...] = _dq(plan, factors, dscores, k, do, memory).astype(dq_ref.dtype)
    memory_ref[...] = memory * factors.across + product(plan, k * factors.leaving, v, (0, 0))


def _keys_kernel(
    plan: Plan,
    log_decay_ref: Any,
    tokens_refs: Refs,
    cotangent_ref: Any,
    marks_refs: Refs,
    dk_ref: Any,
    dv_ref: Any,
    carried_ref: Any,
    within_refs: Refs,
) -> None:
    tpu_chunk.start(plan, log_decay_ref, cotangent_ref, carried_ref, within_refs)
    index = plan.num_chunks - 1 - pl.program_id(2)
    factors = tpu_chunk.factors(plan, log_decay_ref, index, marks_refs, within_refs)
    q, k, v, do = tpu_chunk.load(plan, index, marks_refs, tokens_refs)
    dscores = _dscores(plan, factors, v, do)
    dk, dv, carried = _keys(plan, factors, dscores, (q, k, v, do), carried_ref[...])
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
    carried_ref[...] = carried


def _dscores(plan: Plan, factors: Factors, v: Chunk, do: Chunk) -> Float[Array, "C C"]:
    return plan.scale * product(plan, do, v, (1, 1)) * factors.within


def _dq(
    plan: Plan,
    factors: Factors,
    dscores: Float[Array, "C C"],
    k: Chunk,
    do: Chunk,
    memory: Memory,
) -> Chunk:
    through_memory = plan.scale * product(plan, do, memory, (1, 1)) * factors.entering
    return product(plan, dscores, k, (1, 0)) + through_memory


def _keys(
    plan: Plan,
    factors: Factors,
    dscores: Float[Array, "C C"],
    tokens: tuple[Chunk, Chunk, Chunk, Chunk],
    carried: Memory,
) -> tuple[Chunk, Chunk, Memory]:
    """Cotangents of k, v and the memory before the chunk, from that of the memory after it."""
    q, k, v, do = tokens
    scores = plan.scale * product(plan, q, k, (1, 1)) * factors.within
    dk = product(plan, dscores, q, (0, 0)) + product(plan, v, carried, (1, 1)) * factors.leaving
    dv = product(plan, scores, do, (0, 0)) + product(plan, k, carried, (1, 0)) * factors.leaving
    written = product(plan, q * (plan.scale * factors.entering), do, (0, 0))
    return dk, dv, carried * factors.across + written
