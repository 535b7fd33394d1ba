"""One token of lightning attention on NVIDIA GPUs: one kernel that reads every state once and writes it in place.

XLA makes four kernels of it: a sum of squares for the norm of the queries and one for that of the keys, one that
updates the state and also writes down its product with the query, as large as itself, and one that adds that up.

A block of threads owns some columns of one head's state, all of which is on its way at once: while it waits, others
read theirs, and it norms and rotates the head's query and key by itself, two short vectors. Everything in between is
float32.

Written in Pallas for Triton; `pallas_kernels.products` says why.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch
from pallas_kernels.blocks import block_specs
from pallas_kernels.cost import cost
from pallas_kernels.gradients import as_defined
from pallas_kernels.lightning_step.reference import Operands, Results, reference

MAX_WIDTH = 256  # columns of wider heads do not fit into the registers of one block
COLUMNS = 32  # of a tile: rows of 128 bytes
WARPS = 4

GRID = "I N B"  # parts of the width, heads, rows
STATE, HEAD = "B N . .", "B N ."
INPUTS = Operands._make((HEAD, HEAD, HEAD, "N", STATE, ".", "B .", "B", "B"))

Ref = Any  # an array in HBM, read and written by index


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the kernel knows before it sees arrays."""

    scale: float
    eps: float
    width: int
    columns: int  # of a tile, which has all rows
    interpret: bool

    @property
    def rows(self) -> int:
        """Rows of a tile: a power of two."""
        return pl.next_power_of_2(self.width)


def gpu(operands: Operands, scale: float, eps: float) -> Results:
    """Rounds only the outputs; gradients are those of the definition.

    Raises:
      UnsupportedError: not a data-centre GPU from Ampere on, types that are neither all bfloat16 nor all float32,
        heads too wide, or a mesh.
    """
    dispatch.require("lightning_step", "gpu", unsupported_reason(operands), "reference")
    width = operands.q.shape[2]
    columns = min(COLUMNS, pl.next_power_of_2(width))
    return _step(Plan(scale, eps, width, columns, dispatch.interprets()), operands)


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernel cannot run these arguments here; None where it can."""
    reason = dispatch.dtypes_unsupported_reason("q, k, v", *operands[:3])
    if reason is not None:
        return reason
    width = operands.q.shape[2]
    if width > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide, and these are {width}"
    return dispatch.gpu_unsupported_reason(dispatch.AMPERE)


def _advance(plan: Plan, operands: Operands) -> Results:
    inputs = _inputs(operands)
    batch, heads, width = operands.q.shape
    results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.state, operands.q))
    state, out = pl.pallas_call(
        functools.partial(_tile, plan),
        grid=(pl.cdiv(width, plan.columns), heads, batch),
        in_specs=(block_specs(GRID, INPUTS, inputs),),
        out_specs=block_specs(GRID, (STATE, HEAD), results),
        out_shape=results,
        input_output_aliases={Operands._fields.index("state"): 0},
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        cost_estimate=cost(5 * operands.state.size, 0, (inputs, results)),
        interpret=plan.interpret,
        name="lightning_step",
    )(inputs)
    return out, state


def _inputs(operands: Operands) -> Operands:
    """What the kernel reads: factors in place of the log decays, and in place of the angles two by
    which to turn a row."""
    decay, turns = jnp.exp(operands.log_decay.astype(jnp.float32)), operands.angles
    if turns is not None:
        cos, sin = jnp.cos(turns), jnp.sin(turns)
        turns: Any = jnp.tile(cos, 2), jnp.concatenate([-sin, sin], axis=-1)
    return operands._replace(log_decay=decay, angles=turns)


_step = as_defined(_advance, lambda plan, x: reference(x, plan.scale, plan.eps))


def _tile(plan: Plan, inputs: Any, state: Ref, out: Ref) -> None:
    """The block's columns of one head's state, and of its output, from references to `_inputs`."""
    query, key, value, factor, start_state, scales, turns, real, reset = inputs
    start = pl.program_id(0) * plan.columns
    rows, columns = pl.ds(jnp.int32(0), plan.rows), pl.ds(start, plan.columns)
    across = start + jnp.arange(plan.columns) < plan.width
    mask = _inside(plan)[:, None] & across[None]
    # All is asked for before a sum waits for some of it, the state first.
    before = _load(start_state.at[rows, columns], mask)
    decay = factor[...]
    real, reset = (None if x is None else x[...] for x in (real, reset))
    q_scale, k_scale = scales or (None, None)
    q, k = _rotated(plan, query, q_scale, turns), _rotated(plan, key, k_scale, turns)
    v, readout = _load(value.at[columns], across), plan.scale
    if scales is not None:
        # What a norm divides by is one number, so it may wait until after the rotation.
        v, readout = v * _inverse_norm(plan, key), readout * _inverse_norm(plan, query)
    if reset is not None:
        before = jnp.where(reset, 0.0, before)
    after = decay * before + k[:, None] * v[None]
    o = readout * jnp.sum(q[:, None] * after, axis=0)
    if real is not None:
        after, o = jnp.where(real, after, before), jnp.where(real, o, 0.0)
    triton.store(state.at[rows, columns], after, mask=mask)
    triton.store(out.at[columns], o.astype(out.dtype), mask=across)


def _rotated(
    plan: Plan, x: Ref, scale: Ref | None, turns: tuple[Ref, Ref] | None
) -> Float[Array, "R"]:
    """The head's query or key times its norm's scale, then rotated; what is None is left out."""
    here, half = jnp.arange(plan.rows), plan.width // 2

    def scaled(at):
        y = _load(x.at[at], _inside(plan))
        return y if scale is None else y * _load(scale.at[at], _inside(plan))

    y = scaled(here)
    if turns is None:
        return y
    cos, sin = (_load(turn.at[here], _inside(plan)) for turn in turns)
    return y * cos + scaled(jnp.where(here < half, here + half, here - half)) * sin


def _inverse_norm(plan: Plan, x: Ref) -> Float[Array, ""]:
    """1 / sqrt(mean(x^2) + eps)."""
    x = _load(x.at[jnp.arange(plan.rows)], _inside(plan))
    return jax.lax.rsqrt(jnp.sum(x * x) / plan.width + plan.eps)


def _inside(plan: Plan) -> Bool[Array, "R"]:
    """Which rows of a tile are the head's."""
    return jnp.arange(plan.rows) < plan.width


def _load(ref: Ref, mask: Bool[Array, "*R"]) -> Float[Array, "*R"]:
    return triton.load(ref, mask=mask, other=0.0).astype(jnp.float32)
