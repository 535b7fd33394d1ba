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

from pallas_kernels.cost import cost
from pallas_kernels.lightning_attention import gpu_tiles as tiles
from pallas_kernels.lightning_attention.gpu_tiles import GpuPlan, Ref, Segments


def span_states(
    a: Float[Array, "B T N H"],
    b: Float[Array, "B T N H"],
    edge: Float[Array, "B N H H"],
    needed: Int[Array, "B N S"],
    packed: Segments | None,
    log_decay: Float[Array, "N"],
    plan: GpuPlan,
    *,
    backward: bool,
) -> Float[Array, "B N S H H"]:
    """What the span before each boundary (after it, if backward) adds to the state there:
    sum_t fade_t a_t b_t^T, times the scale if backward. The boundary without a span gets `edge`.

    Only the `needed` chunks nearest to a boundary are read: the others have decayed to 0.
    """
    specs = _Specs(plan)
    return _call(
        functools.partial(_span_states, backward=backward),
        plan,
        inputs=(packed, log_decay, needed, a, b, edge),
        in_specs=(
            specs.packed(packed),
            specs.whole,
            specs.needed,
            *2 * (specs.tokens,),
            specs.state,
        ),
        outputs=_states(plan, plan.spans),
        out_specs=specs.span_state,
        flops=plan.terms * plan.width,
        stages=2 if a.dtype == jnp.float32 else 3,
        name="span_states",
    )


def attend(
    x: Float[Array, "B T N H"],
    y: Float[Array, "B T N H"],
    z: Float[Array, "B T N H"],
    before: Float[Array, "B N S H H"],
    packed: Segments | None,
    log_decay: Float[Array, "N"],
    plan: GpuPlan,
    *,
    backward: bool = False,
    transposed: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Walks each span from the state M before it: out_t = entering_t x_t M + sum_s within_ts (x_t
    y_s) z_s, where token s writes y_s z_s^T. `before` is [z, y] where transposed.

    Outputs are x, y, z = q, k, v; dq is do, v, k. If backward, last token to first: dv is k, q, do
    and dk is v, do, q, from the gradient of the state after the span.

    Returns:
      The outputs, and the state at the end of the walk.
    """
    specs = _Specs(plan)
    return _call(
        functools.partial(_attend, backward=backward, transposed=transposed),
        plan,
        inputs=(packed, log_decay, x, y, z, before),
        in_specs=(specs.packed(packed), specs.whole, *3 * (specs.tokens,), specs.span_state),
        outputs=(jax.ShapeDtypeStruct(x.shape, x.dtype), _states(plan)),
        out_specs=(specs.tokens, specs.state),
        flops=(plan.parts + plan.terms) * plan.chunk + 2 * plan.terms * plan.width,
        # With halves, two blocks share the shared memory of a multiprocessor.
        stages=2 if plan.parts > 1 or x.dtype == jnp.float32 else 3,
        name="attend",
    )


def _span_states(
    packed: Segments | None,
    log_decays: Ref,
    needed: Ref,
    a: Ref,
    b: Ref,
    edge: Ref,
    out: Ref,
    *,
    plan: GpuPlan,
    backward: bool,
) -> None:
    part, head, slot = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    boundary = (slot + int(backward)) * plan.tokens
    log_decay, count = log_decays[head], tiles.count_before(packed, boundary, plan)

    def step(i, state):
        start = boundary + i * plan.chunk if backward else boundary - (i + 1) * plan.chunk
        counts = tiles.counts_through(packed, start, plan)
        real = tiles.is_real(packed, start, counts, plan)
        decays = tiles.decay_factor(log_decay, jnp.abs(counts - count))
        decays = jnp.where(tiles.belongs(packed, start, boundary, plan), decays, 0.0)
        keys = [tiles.read_tokens(a, start, real, plan)]
        values = (factor * decays)[:, None] * tiles.read_tokens(b, start, real, plan, part)
        return tiles.product(tiles.terms(values, a.dtype, plan), keys, (0, 0), plan, onto=state)

    factor = plan.scale if backward else 1.0
    is_edge = slot == (plan.spans - 1 if backward else 0)
    first = tiles.read_state(edge, plan, part, only_if=is_edge)
    tiles.write_state(out, jax.lax.fori_loop(0, needed[slot], step, first), plan, part)


def _attend(
    packed: Segments | None,
    log_decays: Ref,
    x: Ref,
    y: Ref,
    z: Ref,
    before: Ref,
    out: Ref,
    last: Ref,
    *,
    plan: GpuPlan,
    backward: bool,
    transposed: bool,
) -> None:
    part, head, span = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    log_decay, chunks = log_decays[head], tiles.chunks_here(span, plan)
    inner = functools.partial(tiles.inner, packed, log_decay, plan=plan, backward=backward)
    same = inner(jnp.zeros((), jnp.int32)) if packed is None else None

    def step(i, state):
        chunk = chunks - 1 - i if backward else i
        start = span * plan.tokens + chunk * plan.chunk
        within, entering = inner(start) if same is None else same
        leaving, across = tiles.outer(packed, log_decay, start, plan)
        reading, writing = (leaving, entering) if backward else (entering, leaving)
        real = tiles.is_real(packed, start, tiles.counts_through(packed, start, plan), plan)
        # What needs no tokens comes before they are read: they are still on their way.
        held = tiles.terms(state, x.dtype, plan)
        readers, keys = ([tiles.read_tokens(ref, start, real, plan)] for ref in (x, y))
        carried = reading[None, :] * tiles.product(held, readers, (1, 1), plan)
        scores = within * tiles.product(keys, readers, (1, 1), plan)
        values = tiles.read_tokens(z, start, real, plan, part)
        scores = tiles.terms(scores, x.dtype, plan)
        both = tiles.product([values], scores, (0, 0), plan, onto=carried)
        tiles.write_tokens(out, start, both, plan, part)
        new = tiles.terms(writing[:, None] * values, x.dtype, plan)
        return tiles.product(new, keys, (0, 0), plan, onto=across * state)

    state = tiles.read_state(before, plan, part, transposed=transposed)
    state = jax.lax.fori_loop(0, chunks, step, state)

    @pl.when(span == (0 if backward else plan.spans - 1))
    def _():
        tiles.write_state(last, state, plan, part)


class _Specs:
    """What one block of the grid (parts, heads, spans, rows) sees of each array."""

    def __init__(self, plan: GpuPlan) -> None:
        width, columns = plan.width, plan.spans * plan.tokens + 1
        self._packed = pl.BlockSpec((None, columns), lambda p, n, s, b: (b, 0))
        self.whole = pl.BlockSpec((plan.heads,), lambda p, n, s, b: (0,))
        self.needed = pl.BlockSpec((None, None, plan.spans), lambda p, n, s, b: (b, n, 0))
        self.tokens = pl.BlockSpec(
            (None, plan.length, None, width), lambda p, n, s, b: (b, 0, n, 0)
        )
        self.state = pl.BlockSpec((None, None, width, width), lambda p, n, s, b: (b, n, 0, 0))
        self.span_state = pl.BlockSpec(
            (None, None, None, width, width), lambda p, n, s, b: (b, n, s, 0, 0)
        )

    def packed(self, packed: Segments | None) -> Any:
        return jax.tree.map(lambda _: self._packed, packed)


def _states(plan: GpuPlan, *spans: int) -> jax.ShapeDtypeStruct:
    shape = (plan.batch, plan.heads, *spans, plan.width, plan.width)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
    kernel: Callable[..., None],
    plan: GpuPlan,
    *,
    inputs: tuple[Any, ...],
    in_specs: tuple[Any, ...],
    outputs: Any,
    out_specs: Any,
    flops: int,
    stages: int,
    name: str,
) -> Any:
    """Runs a kernel over (parts, heads, spans, rows): blocks that run together read the same tokens
    of a head or neighbouring heads, which lie side by side. `flops` is a half of those per token,
    head and column."""
    tokens = plan.batch * plan.heads * plan.length
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(plan.parts, plan.heads, plan.spans, plan.batch),
        in_specs=in_specs,
        out_specs=out_specs,
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
