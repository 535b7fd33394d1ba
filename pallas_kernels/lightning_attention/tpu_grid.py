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
from pallas_kernels.lightning_attention.segments import decay_factor
from pallas_kernels.lightning_attention.tpu_chunk import SUBLANES, Ref, TpuPlan


class Inputs(NamedTuple):
    """What a kernel reads; the same tree holds the arrays, the blocks and the references of it."""

    log_decay: Any  # [N]
    tokens: Any  # a tuple of [B T N*H]
    first: Any  # what the first chunk carries, [B N H H]
    packed: Any  # segments, [B 8 S]; None: one segment
    saved: Any = None  # the state before every chunk, [B N M H H]


class Result(NamedTuple):
    """What a kernel returns, likewise."""

    tokens: Any  # outputs, or cotangents of q, k, v
    carried: Any  # what went from chunk to chunk, after the last one
    saved: Any  # and before every chunk, in the tokens' dtype, where it is to be saved


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


FORWARD = Kernel("forward", tpu_chunk.forward, num_outputs=1, squares=2, states=2)
BACKWARD = Kernel("backward", tpu_chunk.backward, 3, squares=5, states=4, backward=True)


def call(kernel: Kernel, plan: TpuPlan, inputs: Inputs, *, save: bool = False) -> Result:
    """Runs a kernel over the grid (batch, heads, chunk), each core over its chunks in order."""
    batch, heads, *square = inputs.first.shape
    like = jax.ShapeDtypeStruct(inputs.tokens[0].shape, inputs.tokens[0].dtype)
    chunk_states = jax.ShapeDtypeStruct((batch, heads, plan.num_chunks, *square), like.dtype)
    results = Result(
        tokens=(like,) * kernel.num_outputs,
        carried=jax.ShapeDtypeStruct(inputs.first.shape, jnp.float32),
        saved=chunk_states if save else None,
    )
    in_specs, out_specs = _blocks(kernel, plan, inputs, results)
    decays = pltpu.VMEM((plan.heads, plan.chunk, plan.chunk), jnp.float32)
    (result,) = pl.pallas_call(
        functools.partial(_step, kernel, plan),
        grid=(batch, heads // plan.heads, plan.num_chunks),
        in_specs=(in_specs,),
        out_specs=(out_specs,),
        out_shape=(results,),
        scratch_shapes=(decays if inputs.packed is None else None,),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(kernel, plan, batch * heads, (inputs, results)),
        interpret=plan.interpret,
        name=f"lightning_attention_{kernel.name}",
    )(inputs)
    return result


def _step(kernel: Kernel, plan: TpuPlan, inputs: Inputs, results: Result, within: Ref) -> None:
    """One chunk of all heads of a grid step."""
    step = pl.program_id(2)
    index = plan.num_chunks - 1 - step if kernel.backward else step
    heads = range(plan.heads)
    log_decays = [inputs.log_decay[pl.program_id(1) * plan.heads + head] for head in heads]

    @pl.when(step == 0)
    def _():
        results.carried[...] = inputs.first[...]
        if within is not None:
            for head in heads:
                within[head] = decay_factor(log_decays[head], tpu_chunk.gaps(plan))

    stores = []
    for head in heads:
        lanes = pl.ds(head * plan.width, plan.width)
        own = None if within is None else within[head]
        factors = tpu_chunk.factors(plan, log_decays[head], index, inputs.packed, own)
        tokens = tpu_chunk.load(plan, index, inputs.packed, [x[:, lanes] for x in inputs.tokens])
        carried = results.carried[head]
        saved = [] if inputs.saved is None else [inputs.saved[head]]
        out, next_carried = kernel.function(plan, factors, tokens, carried, *saved)
        stores += [
            (ref, (slice(None), lanes), x) for ref, x in zip(results.tokens, out, strict=True)
        ]
        stores += [] if results.saved is None else [(results.saved, head, carried)]
        stores += [(results.carried, head, next_carried)]
    for ref, place, x in stores:
        ref[place] = x.astype(ref.dtype)


def _blocks(
    kernel: Kernel, plan: TpuPlan, inputs: Inputs, results: Result
) -> tuple[Inputs, Result]:
    """Where a grid step finds log decays, tokens, a state, packed segments and a state of each chunk."""

    def chunk(step):
        return plan.num_chunks - 1 - step if kernel.backward else step

    square, lanes = (plan.width, plan.width), plan.heads * plan.width
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    tokens = pl.BlockSpec((None, plan.chunk, lanes), lambda b, n, c: (b, chunk(c), n))
    state = pl.BlockSpec((None, plan.heads, *square), lambda b, n, c: (b, n, 0, 0))
    packed = pl.BlockSpec((None, SUBLANES, plan.chunk), lambda b, n, c: (b, 0, chunk(c)))
    saved = pl.BlockSpec((None, plan.heads, None, *square), lambda b, n, c: (b, n, chunk(c), 0, 0))
    specs = Inputs(scalars, tokens, state, packed, saved), Result(tokens, state, saved)
    # As many of each as there are arrays of it.
    return jax.tree.map(lambda spec, x: jax.tree.map(lambda _: spec, x), specs, (inputs, results))


def _cost(kernel: Kernel, plan: TpuPlan, heads: int, arrays: Any) -> pl.CostEstimate:
    """A product counts once however many passes its precision takes."""
    numbers = heads * plan.num_chunks * plan.chunk * plan.width
    flops = 2 * numbers * (kernel.squares * plan.chunk + kernel.states * plan.width)
    return cost(flops, 2 * numbers + heads * plan.chunk**2, arrays)
