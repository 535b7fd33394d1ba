"""The gated delta rule: keys of length 1, decays per head and per channel; on a CPU beside lightning attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import gated_delta_rule, lightning_attention
from pallas_kernels.bench.op import Inputs, Op, forward_and_gradient, random
from pallas_kernels.gated_delta_rule import IMPLEMENTATIONS, reference

# Lightning attention in chunks, of the same sizes: its time is the bar, its error means nothing.
LIGHTNING = "lightning"


def _run(q, k, v, log_decay, beta, *, implementation):
    scale = q.shape[3] ** -0.5
    if implementation == LIGHTNING:
        slopes = -jnp.exp2(-8 * jnp.arange(1, q.shape[2] + 1) / q.shape[2])
        return lightning_attention(q, k, v, slopes, scale=scale, implementation="chunked")
    return gated_delta_rule(q, k, v, log_decay, beta, scale=scale, implementation=implementation)


def _definition(q, k, v, log_decay, beta):
    state = jnp.zeros((q.shape[0], *q.shape[2:], v.shape[3]), q.dtype)
    decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    operands = reference.Operands(q, k, v, decay, beta, state, None)
    return reference.recurrent(operands, scale=q.shape[3] ** -0.5)


def _inputs(by_channel, seed, dtype, *shape):
    """Decays from weak to a half per token, beta in (0, 2)."""
    q, k, v, d_out = random(seed, dtype, *4 * (shape,))
    decay, beta = random(seed + 1, "float32", shape if by_channel else shape[:3], shape[:3])
    unit = lambda x: (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)  # noqa: E731
    log_decay = -np.log(2) * jax.nn.sigmoid(decay)
    return Inputs((unit(q), unit(k), v, log_decay, 2 * jax.nn.sigmoid(beta)), (d_out,))


def _product(batch, length, heads, width):
    """The recurrent form: what the state holds for a key, its correction, and what a query reads."""
    return 6.0 * batch * length * heads * width**2


BY_HEAD = Op(
    name="gated_delta_rule",
    axes="B T N H",
    shapes=((1, 16384, 16, 128), (12, 512, 16, 128)),
    cpu_shapes=((1, 4096, 8, 64),),
    implementations=tuple(IMPLEMENTATIONS),
    call=_run,
    definition=_definition,
    inputs=functools.partial(_inputs, False),
    modes=forward_and_gradient("o", "dq dk dv dlog_decay dbeta", _product, 1, 3),
    # At most twice the time of lightning attention.
    cpu_bar=((1, 4096, 8, 64), (LIGHTNING, "chunked")),
)
BY_CHANNEL = dataclasses.replace(
    BY_HEAD, name="gated_delta_rule_by_channel", inputs=functools.partial(_inputs, True)
)
