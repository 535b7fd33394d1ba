"""RMS norm and rotary positions of one layer's queries."""

import jax
import jax.numpy as jnp

from pallas_kernels.bench import inputs
from pallas_kernels.bench.measure import Case, Inputs
from pallas_kernels.norm_rotary import IMPLEMENTATIONS, norm_rotary

# B T N H: a row of the 2B model, a training batch of it; on a CPU the quickstart's layer.
SHAPES = ((1, 16384, 16, 128), (12, 512, 16, 128))
SHAPES_ON_CPU = ((16, 128, 4, 32), (1, 2048, 16, 128))
EPS = 1e-6


def cases() -> list[Case]:
    """Every shape and dtype to time."""
    shapes = SHAPES_ON_CPU if inputs.on_cpu() else SHAPES
    return [_case(dtype, shape) for shape in shapes for dtype in inputs.dtypes()]


def _case(dtype: str, shape: tuple[int, int, int, int]) -> Case:
    batch, length, heads, width = shape

    def function(name):
        return lambda *arrays: norm_rotary(*arrays, eps=EPS, implementation=name)

    def make_inputs(seed, batch=batch, length=length):
        x, d_out = inputs.random(seed, dtype, *2 * ((batch, length, heads, width),))
        frequencies = 1e6 ** -jnp.linspace(0, 1, width // 2, endpoint=False)
        angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
        angles = jnp.broadcast_to(angles[None], (batch, *angles.shape))
        return Inputs((x, jnp.ones(width), angles), d_out)

    def definition(x, scale, angles):
        angles = jax.lax.stop_gradient(angles)[:, :, None]
        y = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS) * scale[None, None, None]
        first, second = jnp.split(y, 2, axis=-1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    numbers = float(batch * length * heads * width)
    return inputs.differentiable(
        op="norm_rotary",
        shape=f"B{batch} T{length} N{heads} H{width}",
        dtype=dtype,
        implementations=inputs.worth_timing(IMPLEMENTATIONS),
        function=function,
        names=("o", "dx", "dscale", "dangles"),
        flops=(8 * numbers, 20 * numbers),
        make_inputs=make_inputs,
        small=lambda: make_inputs(0, 1, min(length, inputs.CHECKED_TOKENS)),
        definition=definition,
    )
