"""The definition of softmax attention: every score of every query and key, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.operands import Operands, visible


def reference(
    operands: Operands,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Masked softmax as written in the contract of `attention`."""
    q, k, v = operands[:3]
    group = q.shape[2] // k.shape[2]
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    k32, v32 = (jnp.repeat(x, group, axis=2) for x in (k32, v32))
    mask = visible(operands)[:, None]
    scores = scale * jnp.einsum("btnh,bsnh->bnts", q32, k32, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(mask, scores, -jnp.inf)
    # A row that sees nothing would be -inf - -inf = NaN; a finite maximum makes it zeros instead.
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(top))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bnts,bsnh->btnh", weights, v32, precision=jax.lax.Precision.HIGHEST).astype(
        q.dtype
    )
