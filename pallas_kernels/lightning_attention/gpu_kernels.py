"""The two Triton kernels of lightning attention.

A block of threads owns one span of one head and some columns of its state, which it keeps in
registers, in float32 and transposed, while it walks the span chunk by chunk. Laid out so, a state
and what a chunk writes to it are left operands of their products, which the matrix unit of a Hopper
GPU takes from registers; only scores pass through shared memory.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import block_specs
from pallas_kernels.cost import cost
from pallas_kernels.lightning_attention.gpu_tiles import Block, Decay, GpuPlan, Ref
from pallas_kernels.lightning_attention.reference import Results, State, Tokens

GRID = "P N S B"  # parts, heads, spans, rows
TOKENS, STATE, SPAN_STATE = "B T N H", "B N H H", "B N S H H"
DECAY = Decay._make(("B .", "."))


def span_states(
    plan: GpuPlan,
    decay: Decay,
    a: Tokens,
    b: Tokens,
    edge: State,
    needed: Int[Array, "B N S"],
    *,
    backward: bool,
) -> Float[Array, "B N S H H"]:
    """What the span before each boundary (after it, if backward) adds to the state there:
    sum_t fade_t a_t b_t^T, times the scale if backward. The boundary without a span gets `edge`.

    Only the `needed` chunks nearest to a boundary are read: the others have decayed to 0.
    """
    return _call(
        functools.partial(_span_states, plan, backward),
        plan,
        inputs=(decay, needed, a, b, edge),
        axes=(DECAY, "B N .", TOKENS, TOKENS, STATE),
        outputs=_states(plan, plan.spans),
        out_axes=SPAN_STATE,
        flops=plan.terms * plan.width,
        stages=2 if a.dtype == jnp.float32 else 3,
        name="span_states",
    )


def attend(
    plan: GpuPlan,
    decay: Decay,
    tokens: tuple[Tokens, Tokens, Tokens],
    before: Float[Array, "B N S H H"],
    *,
    backward: bool = False,
    transposed: bool = False,
) -> Results:
    """Walks each span from the state M before it: out_t = entering_t x_t M + sum_s within_ts (x_t
    y_s) z_s, where token s writes y_s z_s^T. `before` is [z, y] where transposed.

    Outputs are x, y, z = q, k, v; dq is do, v, k. If backward, last token to first: dv is k, q, do
    and dk is v, do, q, from the gradient of the state after the span.

    Returns:
      The outputs, and the state at the end of the walk.
    """
    x = tokens[0]
    return _call(
        functools.partial(_attend, plan, backward, transposed),
        plan,
        inputs=(decay, *tokens, before),
        axes=(DECAY, TOKENS, TOKENS, TOKENS, SPAN_STATE),
        outputs=(jax.ShapeDtypeStruct(x.shape, x.dtype), _states(plan)),
        out_axes=(TOKENS, STATE),
        flops=(plan.parts + plan.terms) * plan.chunk + 2 * plan.terms * plan.width,
        # With halves, two blocks share the shared memory of a multiprocessor.
        stages=2 if plan.parts > 1 or x.dtype == jnp.float32 else 3,
        name="attend",
    )


def _span_states(
    plan: GpuPlan, backward: bool, decay: Decay, needed: Ref, a: Ref, b: Ref, edge: Ref, out: Ref
) -> None:
    block, slot = Block.here(plan, decay), pl.program_id(2)
    boundary = (slot + int(backward)) * plan.tokens
    count = block.count_before(boundary)

    def step(i, state):
        start = boundary + i * plan.chunk if backward else boundary - (i + 1) * plan.chunk
        counts = block.counts_through(start)
        real = block.is_real(start, counts)
        decays = block.decay_factor(jnp.abs(counts - count))
        decays = jnp.where(block.belongs(start, boundary), decays, 0.0)
        keys = [block.read_tokens(a, start, real)]
        values = (factor * decays)[:, None] * block.read_tokens(b, start, real, own=True)
        return block.product(block.terms(values, a.dtype), keys, (0, 0), onto=state)

    factor = plan.scale if backward else 1.0
    is_edge = slot == (plan.spans - 1 if backward else 0)
    first = block.read_state(edge, only_if=is_edge)
    block.write_state(out, jax.lax.fori_loop(0, needed[slot], step, first))


def _attend(
    plan: GpuPlan,
    backward: bool,
    transposed: bool,
    decay: Decay,
    x: Ref,
    y: Ref,
    z: Ref,
    before: Ref,
    out: Ref,
    last: Ref,
) -> None:
    block, span = Block.here(plan, decay), pl.program_id(2)
    # The last span may have fewer.
    chunks = jnp.minimum(plan.chunks, pl.cdiv(plan.length, plan.chunk) - span * plan.chunks)
    inner = functools.partial(block.inner, backward=backward)
    same = inner(jnp.zeros((), jnp.int32)) if block.segments is None else None

    def step(i, state):
        chunk = chunks - 1 - i if backward else i
        start = span * plan.tokens + chunk * plan.chunk
        within, entering = inner(start) if same is None else same
        leaving, across = block.outer(start)
        reading, writing = (leaving, entering) if backward else (entering, leaving)
        real = block.is_real(start, block.counts_through(start))
        # What needs no tokens comes before they are read: they are still on their way.
        held = block.terms(state, x.dtype)
        readers, keys = ([block.read_tokens(ref, start, real)] for ref in (x, y))
        carried = reading[None, :] * block.product(held, readers, (1, 1))
        scores = within * block.product(keys, readers, (1, 1))
        values = block.read_tokens(z, start, real, own=True)
        both = block.product([values], block.terms(scores, x.dtype), (0, 0), onto=carried)
        block.write_tokens(out, start, both)
        new = block.terms(writing[:, None] * values, x.dtype)
        return block.product(new, keys, (0, 0), onto=across * state)

    state = block.read_state(before, transposed=transposed)
    state = jax.lax.fori_loop(0, chunks, step, state)

    @pl.when(span == (0 if backward else plan.spans - 1))
    def _():
        block.write_state(last, state)


def _states(plan: GpuPlan, *spans: int) -> jax.ShapeDtypeStruct:
    shape = (plan.batch, plan.heads, *spans, plan.width, plan.width)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
    kernel: Callable[..., None],
    plan: GpuPlan,
    *,
    inputs: tuple[Any, ...],
    axes: tuple[Any, ...],
    outputs: Any,
    out_axes: Any,
    flops: int,
    stages: int,
    name: str,
) -> Any:
    """Runs a kernel over the grid: blocks that run together read the same tokens of a head or
    neighbouring heads, which lie side by side. `flops` is a half of those per token, head and column."""
    tokens = plan.batch * plan.heads * plan.length
    return pl.pallas_call(
        kernel,
        grid=(plan.parts, plan.heads, plan.spans, plan.batch),
        in_specs=block_specs(GRID, axes, inputs),
        out_specs=block_specs(GRID, out_axes, outputs),
        out_shape=outputs,
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(
            num_warps=8 if plan.part > 64 else 4, num_stages=stages
        ),
        cost_estimate=cost(
            2 * tokens * plan.width * flops, tokens * (plan.chunk + 2), (inputs, outputs)
        ),
        name=f"lightning_attention_{name}",
    )(*inputs)
