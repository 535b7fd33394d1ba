"""RMS norm and rotary positions of one layer's queries."""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels.bench.op import Inputs, Op, forward_and_gradient, random
from pallas_kernels.norm_rotary import IMPLEMENTATIONS, norm_rotary

EPS = 1e-6


def _inputs(seed, dtype, batch, length, heads, width):
    x, d_out = random(seed, dtype, *2 * ((batch, length, heads, width),))
    frequencies = 1e6 ** -jnp.linspace(0, 1, width // 2, endpoint=False)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
    angles = jnp.broadcast_to(angles[None], (batch, *angles.shape))
    return Inputs((x, jnp.ones(width), angles), (d_out,))


def _definition(x, scale, angles):
    angles = jax.lax.stop_gradient(angles)[:, :, None]
    y = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS) * scale[None, None, None]
    first, second = jnp.split(y, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


NORM_ROTARY = Op(
    name="norm_rotary",
    axes="B T N H",
    # A row of the 2B model, a training batch of it; on a CPU the quickstart's layer.
    shapes=((1, 16384, 16, 128), (12, 512, 16, 128)),
    cpu_shapes=((16, 128, 4, 32), (1, 2048, 16, 128)),
    implementations=IMPLEMENTATIONS,
    call=functools.partial(norm_rotary, eps=EPS),
    definition=_definition,
    inputs=_inputs,
    modes=forward_and_gradient("o", "dx dscale dangles", lambda *shape: math.prod(shape), 8, 20),
)
