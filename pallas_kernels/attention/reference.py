"""The definition of softmax attention: every score of every query and key, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.operands import Operands, visible
from pallas_kernels.attention.partial_softmax import LOWEST, Part, finish
from pallas_kernels.products import product


def reference(operands: Operands, *, scale: float) -> Float[Array, "B T N H"]:
    """Masked softmax as written in the contract of `attention`."""
    return finish(reference_part(operands, scale=scale)).astype(operands.q.dtype)


def reference_part(operands: Operands, *, scale: float) -> Part:
    """The same, before the division."""
    q, k, v = (x.astype(jnp.float32) for x in operands[:3])
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = scale * product("btnh,bsnh->btns", q, k)
    scores = jnp.where(visible(operands)[:, :, None], scores, -jnp.inf)
    # A row that sees nothing would be -inf - -inf = NaN; a finite maximum makes it zeros instead.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1), LOWEST))
    weights = jnp.exp(scores - top[..., None])
    return Part(top, jnp.sum(weights, axis=-1), product("btns,bsnh->btnh", weights, v))
