"""The forward kernel of lightning attention on TPU: outputs and memory in one pass over the chunks.

The last axis of the grid is the chunk, walked in order on one core, so the memory of a head never
leaves the chip: it lives in the block of the last memory, whose place is the same for all chunks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.lightning_attention import tpu_chunk
from pallas_kernels.lightning_attention.tpu_chunk import Blocks, Plan, Refs, product


def forward(
    plan: Plan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Float[Array, "B T W"], Float[Array, "B T W"], Float[Array, "B T W"]],
    state: Float[Array, "B N H H"],
    marks: tuple[Float[Array, "B 8 S"], ...],
    *,
    save_states: bool,
) -> tuple[Float[Array, "B T W"], Float[Array, "B N H H"], tuple[Float[Array, "B N M H H"], ...]]:
    """Outputs, the last memory, and (where they are to be saved) the memory before every chunk.

    tokens are q, k and v with all heads side by side; marks is empty for one document.
    """
    blocks, (batch, heads) = Blocks(plan), state.shape[:2]
    q = tokens[0]
    saved = (batch, heads, plan.num_chunks, plan.width, plan.width)
    saves = range(int(save_states))
    return tpu_chunk.call(
        functools.partial(_kernel, plan),
        plan,
        (log_decay, tokens, state, marks),
        in_specs=(
            blocks.log_decay,
            (blocks.tokens,) * 3,
            blocks.memory,
            (blocks.marks,) * len(marks),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
            tuple(jax.ShapeDtypeStruct(saved, q.dtype) for _ in saves),
        ),
        out_specs=(blocks.tokens, blocks.memory, tuple(blocks.memories for _ in saves)),
        squares=2,
        memories=2,
        name="lightning_attention_forward",
    )


def _kernel(
    plan: Plan,
    log_decay_ref: Any,
    tokens_refs: Refs,
    state_ref: Any,
    marks_refs: Refs,
    out_ref: Any,
    memory_ref: Any,
    saved_refs: Refs,
    within_refs: Refs,
) -> None:
    tpu_chunk.start(plan, log_decay_ref, state_ref, memory_ref, within_refs)
    index, memory = pl.program_id(2), memory_ref[...]
    for ref in saved_refs:
        ref[...] = memory.astype(ref.dtype)
    factors = tpu_chunk.factors(plan, log_decay_ref, index, marks_refs, within_refs)
    q, k, v = tpu_chunk.load(plan, index, marks_refs, tokens_refs)
    scores = product(plan, q, k, (1, 1)) * factors.within
    through_memory = product(plan, q, memory, (1, 0)) * factors.entering
    out = product(plan, scores, v, (1, 0)) + through_memory
    out_ref[...] = (plan.scale * out).astype(out_ref.dtype)
    memory_ref[...] = memory * factors.across + product(plan, k * factors.leaving, v, (0, 0))
