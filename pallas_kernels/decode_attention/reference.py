"""The definition of decode attention: every score of every slot, in float32."""

import jax
import jax.numpy as jnp

from pallas_kernels.decode_attention.partial_softmax import LOWEST, Operands, Part, seen
from pallas_kernels.products import product


def reference(
    operands: Operands,
    *,
    scale: float,
) -> Part:
    """Masked softmax as written in the contract of `decode_attention`."""
    q, keys, values = operands[:3]
    group = q.shape[1] // keys.shape[2]
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, keys, values))
    k32, v32 = (jnp.repeat(x, group, axis=2) for x in (k32, v32))
    scores = scale * product("bnh,bsnh->bns", q32, k32)
    scores = jnp.where(seen(operands, 0, keys.shape[1])[:, None], scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1), LOWEST))
    weights = jnp.exp(scores - top[..., None])
    return Part(top, jnp.sum(weights, axis=-1), product("bns,bsnh->bnh", weights, v32))
