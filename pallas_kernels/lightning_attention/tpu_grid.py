"""The grid of the TPU kernels of lightning attention: chunks in order, several heads per step.

Arrays are seen as [B, T, N*H], so that a head is a block of lanes and no copy changes their layout.
What a head carries from chunk to chunk never leaves the chip before the last one: it lives in the
block of the result, whose place is the same for all chunks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.cost import cost
from pallas_kernels.lightning_attention import tpu_chunk
from pallas_kernels.lightning_attention.tpu_chunk import SUBLANES, Refs, TpuPlan


class Result(NamedTuple):
    """What a kernel returns; the same tree holds the shapes, the blocks and the references of it."""

    tokens: tuple[Any, ...]  # outputs, or cotangents of q, k, v
    carried: Any  # what went from chunk to chunk, after the last one
    saved: tuple[Any, ...] = ()  # and before every chunk, where it was to be saved


class Kernel(NamedTuple):
    """A kernel, and what its grid must know of it.

    Attributes:
      function: `(plan, factors, tokens, carried, *saved)` of one head and chunk to arrays like the
        tokens, and what the next chunk is to carry. It touches no references: all heads of a step
        are loaded before any is stored, which leaves the compiler free to interleave them.
      num_outputs: number of arrays like the tokens.
      squares, states: products per chunk over [C, C] and over [H, H], for the cost estimate.
      backward: walk the chunks last to first.
    """

    name: str
    function: Callable[..., tuple[tuple[Float[Array, "C H"], ...], Float[Array, "H H"]]]
    num_outputs: int
    squares: int
    states: int
    backward: bool = False


def call(
    kernel: Kernel,
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Float[Array, "B T W"], ...],
    first: Float[Array, "B N H H"],
    packed: tuple[Float[Array, "B 8 S"], ...],
    saved: tuple[Float[Array, "B N M H H"], ...] = (),
    *,
    save: bool = False,
) -> Result:
    """Runs a kernel over the grid (batch, heads, chunk), each core over its chunks in order.

    Args:
      first: what the first chunk carries.
      save: give what each chunk carried, in the tokens' dtype.
    """
    batch, heads = first.shape[:2]
    like, square = tokens[0], (plan.heads, plan.chunk, plan.chunk)
    chunk_states = (batch, heads, plan.num_chunks, *first.shape[2:])
    operands = (log_decay, tokens, first, packed, saved)
    results = Result(
        tokens=(jax.ShapeDtypeStruct(like.shape, like.dtype),) * kernel.num_outputs,
        carried=jax.ShapeDtypeStruct(first.shape, jnp.float32),
        saved=(jax.ShapeDtypeStruct(chunk_states, like.dtype),) * save,
    )
    scalars, *blocks = _blocks(plan, kernel.backward)
    of_tokens, of_state, of_packed, of_saved = blocks
    counts = (len(tokens), len(packed), len(saved))
    (result,) = pl.pallas_call(
        functools.partial(_step, kernel.function, plan, kernel.backward),
        grid=(batch, heads // plan.heads, plan.num_chunks),
        in_specs=(
            scalars,
            (of_tokens,) * counts[0],
            of_state,
            (of_packed,) * counts[1],
            (of_saved,) * counts[2],
        ),
        out_specs=(Result((of_tokens,) * kernel.num_outputs, of_state, (of_saved,) * save),),
        out_shape=(results,),
        scratch_shapes=((pltpu.VMEM(square, jnp.float32),) * (not packed),),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(plan, batch * heads, (operands, results), kernel),
        interpret=plan.interpret,
        name=f"lightning_attention_{kernel.name}",
    )(*operands)
    return result


def _step(
    kernel: Callable[..., Any],
    plan: TpuPlan,
    backward: bool,
    log_decay_ref: Any,
    tokens_refs: Refs,
    first_ref: Any,
    packed_refs: Refs,
    saved_refs: Refs,
    result_refs: Result,
    within_refs: Refs,
) -> None:
    """One chunk of all heads of a grid step."""
    step = pl.program_id(2)
    index = plan.num_chunks - 1 - step if backward else step
    heads = range(plan.heads)
    log_decays = [log_decay_ref[pl.program_id(1) * plan.heads + head] for head in heads]

    @pl.when(step == 0)
    def _():
        result_refs.carried[...] = first_ref[...]
        for ref in within_refs:
            for head in heads:
                ref[head] = tpu_chunk.decay_factor(log_decays[head], tpu_chunk.gaps(plan))

    stores = []
    for head in heads:
        lanes = pl.ds(head * plan.width, plan.width)
        within = [ref[head] for ref in within_refs]
        factors = tpu_chunk.factors(plan, log_decays[head], index, packed_refs, within)
        tokens = tpu_chunk.load(plan, index, packed_refs, [ref[:, lanes] for ref in tokens_refs])
        carried = result_refs.carried[head]
        saved = [ref[head] for ref in saved_refs]
        out, next_carried = kernel(plan, factors, tokens, carried, *saved)
        stores += [
            (ref, (slice(None), lanes), x) for ref, x in zip(result_refs.tokens, out, strict=True)
        ]
        stores += [(ref, head, carried) for ref in result_refs.saved]
        stores += [(result_refs.carried, head, next_carried)]
    for ref, place, x in stores:
        ref[place] = x.astype(ref.dtype)


def _blocks(plan: TpuPlan, backward: bool) -> tuple[pl.BlockSpec, ...]:
    """Where a grid step finds log decays, tokens, a state, packed segments and a state of each chunk."""

    def chunk(step):
        return plan.num_chunks - 1 - step if backward else step

    square = (plan.width, plan.width)
    return (
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((None, plan.chunk, plan.heads * plan.width), lambda b, n, c: (b, chunk(c), n)),
        pl.BlockSpec((None, plan.heads, *square), lambda b, n, c: (b, n, 0, 0)),
        pl.BlockSpec((None, SUBLANES, plan.chunk), lambda b, n, c: (b, 0, chunk(c))),
        pl.BlockSpec((None, plan.heads, None, *square), lambda b, n, c: (b, n, chunk(c), 0, 0)),
    )


def _cost(plan: TpuPlan, heads: int, arrays: Any, kernel: Kernel) -> pl.CostEstimate:
    """A product counts once however many passes its precision takes."""
    numbers = heads * plan.num_chunks * plan.chunk * plan.width
    flops = 2 * numbers * (kernel.squares * plan.chunk + kernel.states * plan.width)
    return cost(flops, 2 * numbers + heads * plan.chunk**2, arrays)
