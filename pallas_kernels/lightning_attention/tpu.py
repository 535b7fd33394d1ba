"""Lightning attention on TPU: fused Pallas kernels under this op's contract."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import tpu_chunk, tpu_kernels
from pallas_kernels.lightning_attention.reference import Operands
from pallas_kernels.lightning_attention.tpu_chunk import TpuPlan
from pallas_kernels.products import Precision

LANES = 128
INTERPRETED_CHUNK = 32
STEP_ROWS = 512  # tokens times heads per grid step, at most
BFLOAT16_ROWS = 16  # rows of one tile

Tokens = Float[Array, "B T W"]
State = Float[Array, "B N H H"]
Packed = tuple[Float[Array, "B 8 S"], ...]


def tpu(
    operands: Operands,
    *,
    scale: float,
    precision: Precision = "split",
    save_states: bool = True,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """One kernel forward, one or two backward; arguments and results as `lightning_attention`.

    bfloat16 inputs are exact in the matrix units; what is computed from them is not.

    Args:
      precision: for bfloat16 inputs. "split" multiplies float32 intermediates as the sum of two
        bfloat16 terms: relative error 3e-6 before the outputs are rounded. "one_pass" rounds them:
        2e-3, and half the products. Other dtypes are computed in float32 throughout.
      save_states: differentiating keeps the state before every chunk, in q's dtype: one backward
        kernel instead of two, for B * N * (T / chunk) * H * H numbers.
    Raises:
      UnsupportedError: not a TPU, a head width that is not a multiple of 128, or a mesh.
    """
    q, k, v, log_decay, state, segment_ids = operands
    dispatch.require("lightning_attention", "tpu", unsupported_reason(q), "chunked")
    batch, length, heads, width = q.shape
    chunk = min(chunk_size(), -(-length // BFLOAT16_ROWS) * BFLOAT16_ROWS)
    exact = all(x.dtype == jnp.bfloat16 for x in (q, k, v))
    dtype, products = (jnp.bfloat16, precision) if exact else (jnp.float32, "float32")
    together = max(n for n in range(1, heads + 1) if heads % n == 0 and n * chunk <= STEP_ROWS)
    plan = TpuPlan(
        scale, chunk, length, width, together, products, save_states, dispatch.interprets()
    )
    packed = () if segment_ids is None else (tpu_chunk.pack_segments(segment_ids, chunk),)
    flat = (x.reshape(batch, length, heads * width).astype(dtype) for x in (q, k, v))
    out, last = _attend(plan, log_decay, tuple(flat), state, packed)
    return out.reshape(q.shape).astype(q.dtype), last


def unsupported_reason(q: Float[Array, "B T N H"]) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    reason = dispatch.platform_unsupported_reason("tpu")
    if reason is not None or dispatch.interprets():
        return reason
    if q.shape[-1] % LANES:
        return f"needs a head width that is a multiple of {LANES}, and it is {q.shape[-1]}"
    return dispatch.mesh_unsupported_reason()


def chunk_size() -> int:
    """Tokens per chunk: as many as the matrix unit is wide.

    A wider chunk moves fewer saved states and costs more products. By peak rates, the forward pass
    at this width is bound by bytes on v5e and v6e, by products on v5p, and by neither on v4 and 7x.
    """
    return INTERPRETED_CHUNK if dispatch.interprets() else pltpu.get_tpu_info().mxu_column_size


def _attend_alone(
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens],
    state: State,
    packed: Packed,
) -> tuple[Tokens, State]:
    (out,), last, _ = tpu_kernels.forward(plan, log_decay, tokens, state, packed, save=False)
    return out, last


def _attend_forward(
    plan: TpuPlan,
    log_decay: Float[Array, "N"],
    tokens: tuple[Tokens, Tokens, Tokens],
    state: State,
    packed: Packed,
) -> tuple[tuple[Tokens, State], Any]:
    (out,), last, saved = tpu_kernels.forward(
        plan, log_decay, tokens, state, packed, save=plan.save_states
    )
    return (out, last), (log_decay, tokens, state, packed, saved)


def _attend_backward(plan: TpuPlan, residuals: Any, cotangents: tuple[Tokens, State]) -> Any:
    log_decay, tokens, state, packed, saved = residuals
    do, dlast = cotangents
    tokens = (*tokens, do)
    if saved:
        result = tpu_kernels.backward_from_saved(plan, log_decay, tokens, dlast, saved[0], packed)
    else:
        result = tpu_kernels.backward_from_nothing(plan, log_decay, tokens, dlast, state, packed)
    constants = jax.tree.map(jnp.zeros_like, (log_decay, packed))
    return constants[0], result.tokens, result.carried, constants[1]


_attend: Any = jax.custom_vjp(_attend_alone, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
