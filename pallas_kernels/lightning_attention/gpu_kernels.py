"""The three Triton kernels of lightning attention.

A block of threads owns one head of one span of tokens and keeps one memory, [H, H] in float32, in
registers while it walks the span chunk by chunk.
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
from pallas_kernels.lightning_attention.gpu_tiles import Marks, Plan, Ref


def written(
    a: Float[Array, "B T N H"],
    b: Float[Array, "B T N H"],
    edge: Float[Array, "B N H H"],
    needed: Int[Array, "B N S"],
    marks: Marks | None,
    log_decay: Float[Array, "N"],
    plan: Plan,
    *,
    backward: bool,
) -> Float[Array, "B N S H H"]:
    """What the span before each boundary (after it, if backward) adds to the memory there:
    sum_t fade_t a_t b_t^T, times the scale if backward. The boundary without a span gets `edge`.

    Only the `needed` chunks nearest to a boundary are read: the others have faded to 0.
    """
    specs = _Specs(plan)
    return _call(
        functools.partial(_written, backward=backward),
        plan,
        inputs=(marks, log_decay, needed, a, b, edge),
        in_specs=(
            specs.marks(marks),
            specs.whole,
            specs.needed,
            *2 * (specs.tokens,),
            specs.memory,
        ),
        outputs=_memories(plan, plan.spans),
        out_specs=specs.span_memory,
        flops=plan.terms * plan.width,
        stages=3,
        name="written",
    )


def attend(
    x: Float[Array, "B T N H"],
    y: Float[Array, "B T N H"],
    z: Float[Array, "B T N H"],
    before: Float[Array, "B N S H H"],
    marks: Marks | None,
    log_decay: Float[Array, "N"],
    plan: Plan,
    *,
    backward: bool = False,
    transposed: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Walks each span from the memory M before it: out_t = entering_t x_t M + sum_s within_ts (x_t
    y_s) z_s, where token s writes y_s z_s^T. `before` is [z, y] where transposed.

    Outputs are x, y, z = q, k, v; dq is do, v, k. If backward, last token to first: dv is k, q, do
    and dk is v, do, q, from the gradient of the memory after the span.

    Returns:
      The outputs, and the memory at the end of the walk.
    """
    specs = _Specs(plan)
    return _call(
        functools.partial(_attend, backward=backward, transposed=transposed),
        plan,
        inputs=(marks, log_decay, x, y, z, before),
        in_specs=(specs.marks(marks), specs.whole, *3 * (specs.tokens,), specs.span_memory),
        outputs=(jax.ShapeDtypeStruct(x.shape, x.dtype), _memories(plan)),
        out_specs=(specs.tokens, specs.memory),
        flops=(1 + plan.terms) * plan.chunk + 2 * plan.terms * plan.width,
        stages=2 if x.dtype == jnp.float32 else 3,
        name="attend",
    )


def key_value_gradients(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    d_out: Float[Array, "B T N H"],
    after: Float[Array, "B N S H H"],
    marks: Marks | None,
    log_decay: Float[Array, "N"],
    plan: Plan,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """dk, dv and the gradient of the first memory: both backward walks of `attend` in one, which
    reads the four arrays once."""
    specs, tokens = _Specs(plan), jax.ShapeDtypeStruct(q.shape, q.dtype)
    return _call(
        _key_value_gradients,
        plan,
        inputs=(marks, log_decay, q, k, v, d_out, after),
        in_specs=(specs.marks(marks), specs.whole, *4 * (specs.tokens,), specs.span_memory),
        outputs=(tokens, tokens, _memories(plan)),
        out_specs=(specs.tokens, specs.tokens, specs.memory),
        flops=(2 + 2 * plan.terms) * plan.chunk + 3 * plan.terms * plan.width,
        stages=2,
        name="key_value_gradients",
    )


def _written(
    marks: Marks | None,
    log_decay: Ref,
    needed: Ref,
    a: Ref,
    b: Ref,
    edge: Ref,
    out: Ref,
    *,
    plan: Plan,
    backward: bool,
) -> None:
    head, slot = pl.program_id(0), pl.program_id(1)
    boundary = (slot + int(backward)) * plan.tokens
    decay, count = log_decay[head], tiles.count_before(marks, boundary, plan)

    def step(i, memory):
        start = boundary + i * plan.chunk if backward else boundary - (i + 1) * plan.chunk
        counts = tiles.counts_through(marks, start, plan)
        real = tiles.is_real(marks, start, counts, plan)
        fade = tiles.fade(decay, jnp.abs(counts - count))
        fade = jnp.where(tiles.belongs(marks, start, boundary, plan), fade, 0.0)
        x, y = tiles.read_tokens(a, start, real, plan), tiles.read_tokens(b, start, real, plan)
        return memory + tiles.product(x, factor * fade[:, None] * y, (0, 0), plan)

    factor = plan.scale if backward else 1.0
    is_edge = slot == (plan.spans - 1 if backward else 0)
    first = tiles.read_memory(edge, plan, only_if=is_edge)
    tiles.write_memory(out, jax.lax.fori_loop(0, needed[slot], step, first), plan)


def _attend(
    marks: Marks | None,
    log_decay: Ref,
    x: Ref,
    y: Ref,
    z: Ref,
    before: Ref,
    out: Ref,
    last: Ref,
    *,
    plan: Plan,
    backward: bool,
    transposed: bool,
) -> None:
    head, span = pl.program_id(0), pl.program_id(1)
    decay, chunks = log_decay[head], tiles.chunks_here(span, plan)

    def step(i, memory):
        chunk = chunks - 1 - i if backward else i
        start = span * plan.tokens + chunk * plan.chunk
        fade = tiles.decays(marks, decay, start, plan, backward=backward)
        reading, writing = fade.entering, fade.leaving
        if backward:
            reading, writing = writing, reading
        read = (tiles.read_tokens(ref, start, fade.real, plan) for ref in (x, y, z))
        readers, keys, values = read
        scores = tiles.product(readers, keys, (1, 1), plan) * fade.within
        inside = tiles.product(scores, values, (1, 0), plan)
        carried = reading[:, None] * tiles.product(readers, memory, (1, 0), plan)
        tiles.write_tokens(out, start, inside + carried, plan)
        new = tiles.product(keys, writing[:, None] * values, (0, 0), plan)
        return fade.across * memory + new

    memory = tiles.read_memory(before, plan)
    memory = memory.T if transposed else memory
    memory = jax.lax.fori_loop(0, chunks, step, memory)

    @pl.when(span == (0 if backward else plan.spans - 1))
    def _():
        tiles.write_memory(last, memory, plan)


def _key_value_gradients(
    marks: Marks | None,
    log_decay: Ref,
    q: Ref,
    k: Ref,
    v: Ref,
    d_out: Ref,
    after: Ref,
    d_k: Ref,
    d_v: Ref,
    d_state: Ref,
    *,
    plan: Plan,
) -> None:
    head, span = pl.program_id(0), pl.program_id(1)
    decay, chunks = log_decay[head], tiles.chunks_here(span, plan)

    def step(i, memory):
        start = span * plan.tokens + (chunks - 1 - i) * plan.chunk
        fade = tiles.decays(marks, decay, start, plan, backward=True)
        read = (tiles.read_tokens(ref, start, fade.real, plan) for ref in (q, k, v, d_out))
        queries, keys, values, d_outs = read
        leaving = fade.leaving[:, None]
        scores = tiles.product(keys, queries, (1, 1), plan) * fade.within
        d_values = tiles.product(scores, d_outs, (1, 0), plan)
        d_values = d_values + leaving * tiles.product(keys, memory, (1, 0), plan)
        tiles.write_tokens(d_v, start, d_values, plan)
        d_scores = tiles.product(values, d_outs, (1, 1), plan) * fade.within
        d_keys = tiles.product(d_scores, queries, (1, 0), plan)
        d_keys = d_keys + leaving * tiles.product(values, memory, (1, 1), plan)
        tiles.write_tokens(d_k, start, d_keys, plan)
        new = tiles.product(queries, fade.entering[:, None] * d_outs, (0, 0), plan)
        return fade.across * memory + new

    memory = jax.lax.fori_loop(0, chunks, step, tiles.read_memory(after, plan))

    @pl.when(span == 0)
    def _():
        tiles.write_memory(d_state, memory, plan)


class _Specs:
    """What one block of the grid (heads, spans, rows) sees of each array."""

    def __init__(self, plan: Plan) -> None:
        width, columns = plan.width, plan.spans * plan.tokens + 1
        self._marks = pl.BlockSpec((None, columns), lambda n, s, b: (b, 0))
        self.whole = pl.BlockSpec((plan.heads,), lambda n, s, b: (0,))
        self.needed = pl.BlockSpec((None, None, plan.spans), lambda n, s, b: (b, n, 0))
        self.tokens = pl.BlockSpec((None, plan.length, None, width), lambda n, s, b: (b, 0, n, 0))
        self.memory = pl.BlockSpec((None, None, width, width), lambda n, s, b: (b, n, 0, 0))
        self.span_memory = pl.BlockSpec(
            (None, None, None, width, width), lambda n, s, b: (b, n, s, 0, 0)
        )

    def marks(self, marks: Marks | None) -> Any:
        return jax.tree.map(lambda _: self._marks, marks)


def _memories(plan: Plan, *spans: int) -> jax.ShapeDtypeStruct:
    shape = (plan.batch, plan.heads, *spans, plan.width, plan.width)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
    kernel: Callable[..., None],
    plan: Plan,
    *,
    inputs: tuple[Any, ...],
    in_specs: tuple[Any, ...],
    outputs: Any,
    out_specs: Any,
    flops: int,
    stages: int,
    name: str,
) -> Any:
    """Runs a kernel over (heads, spans, rows): blocks that run together read neighbouring heads,
    which lie side by side. `flops` is a half of those per token, head and column."""
    tokens = plan.batch * plan.heads * plan.length
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(plan.heads, plan.spans, plan.batch),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=outputs,
        interpret=plan.interpret,
        compiler_params=triton.CompilerParams(
            num_warps=8 if plan.width > 32 else 4, num_stages=stages
        ),
        cost_estimate=cost(
            2 * tokens * plan.width * flops, tokens * (plan.chunk + 2), (inputs, outputs)
        ),
        name=f"lightning_attention_{name}",
    )(*inputs)
