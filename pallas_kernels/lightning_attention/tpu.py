"""Lightning attention on TPU: fused Pallas kernels under this op's contract."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import tpu_chunk, tpu_grid
from pallas_kernels.lightning_attention.reference import Operands, Results
from pallas_kernels.lightning_attention.tpu_chunk import TpuPlan
from pallas_kernels.lightning_attention.tpu_grid import Inputs
from pallas_kernels.products import Precision

INTERPRETED_CHUNK = 32
STEP_ROWS = 512  # tokens times heads per grid step, at most
BFLOAT16_ROWS = 16  # rows of one tile


def tpu(operands: Operands, *, scale: float, precision: Precision = "split") -> Results:
    """One kernel forward, one backward; arguments and results as `lightning_attention`.

    bfloat16 inputs are exact in the matrix units; other dtypes are computed in float32 throughout.
    Differentiating keeps the state before every chunk, B * N * (T / chunk) * H * H numbers in q's dtype.

    Raises:
      UnsupportedError: not a TPU, a head width that is not a multiple of 128, or a mesh.
    """
    dispatch.require("lightning_attention", "tpu", unsupported_reason(operands), "chunked")
    q, k, v, log_decay, state, segment_ids = operands
    batch, length, heads, width = q.shape
    chunk = min(chunk_size(), -(-length // BFLOAT16_ROWS) * BFLOAT16_ROWS)
    exact = all(x.dtype == jnp.bfloat16 for x in (q, k, v))
    dtype, products = (jnp.bfloat16, precision) if exact else (jnp.float32, "float32")
    together = max(n for n in range(1, heads + 1) if heads % n == 0 and n * chunk <= STEP_ROWS)
    plan = TpuPlan(scale, chunk, length, width, together, products, dispatch.interprets())
    packed = None if segment_ids is None else tpu_chunk.pack_segments(segment_ids, chunk)
    flat = (x.reshape(batch, length, heads * width).astype(dtype) for x in (q, k, v))
    out, last = _attend(plan, Inputs(log_decay, tuple(flat), state, packed))
    return out.reshape(q.shape).astype(q.dtype), last


def unsupported_reason(operands: Operands) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    return dispatch.tpu_unsupported_reason(operands.q.shape[3])


def chunk_size() -> int:
    """Tokens per chunk: as many as the matrix unit is wide.

    A wider chunk moves fewer saved states and costs more products. By peak rates, the forward pass
    at this width is bound by bytes on v5e and v6e, by products on v5p, and by neither on v4 and 7x.
    """
    return INTERPRETED_CHUNK if dispatch.interprets() else pltpu.get_tpu_info().mxu_column_size


def _attend_alone(plan: TpuPlan, inputs: Inputs) -> Any:
    (out,), last, _ = tpu_grid.call(tpu_grid.FORWARD, plan, inputs)
    return out, last


def _attend_forward(plan: TpuPlan, inputs: Inputs) -> tuple[Any, Inputs]:
    (out,), last, saved = tpu_grid.call(tpu_grid.FORWARD, plan, inputs, save=True)
    return (out, last), inputs._replace(saved=saved)


def _attend_backward(plan: TpuPlan, inputs: Inputs, cotangents: Any) -> tuple[Inputs]:
    d_out, d_last = cotangents
    reversed_inputs = inputs._replace(tokens=(*inputs.tokens, d_out), first=d_last)
    d_tokens, d_state, _ = tpu_grid.call(tpu_grid.BACKWARD, plan, reversed_inputs)
    return (Inputs(None, d_tokens, d_state, None),)


_attend: Any = jax.custom_vjp(_attend_alone, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
