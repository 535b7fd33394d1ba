"""All linear maps that one token goes through in a few layers, norms, gates and residuals included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench import float64, inputs
from pallas_kernels.bench.measure import Case, Inputs, Mode
from pallas_kernels.projection import IMPLEMENTATIONS, Norm, projection

# B L D F: rows, layers, width and width of the MLP; the 2B model for one row and for a batch.
SHAPES = ((1, 8, 2048, 6144), (8, 8, 2048, 6144))
SHAPES_ON_CPU = ((1, 2, 128, 384),)
SMALL = (1, 1, 128, 384)
EPS = 1e-6
MAPS = 8  # of a layer: queries, keys, values, gate, output; gate, up and down of the MLP


def cases() -> list[Case]:
    """Every shape and dtype to time."""
    shapes = SHAPES_ON_CPU if inputs.on_cpu() else SHAPES
    return [_case(dtype, shape) for shape in shapes for dtype in inputs.dtypes()]


def _case(dtype: str, shape: tuple[int, int, int, int]) -> Case:
    batch, layers, width, mlp = shape

    def function(name):
        def call(x, scale, *maps):
            norm, how = Norm(scale, EPS), {"implementation": name}
            for *heads, out, gate, up, down in _layers(maps):
                q, k, v, g = projection(x, tuple(heads), norm=norm, **how)
                (x,) = projection(q + k + v, (out,), norm=norm, gate=g, residual=x, **how)
                g, u = projection(x, (gate, up), norm=norm, **how)
                rest = {"activation": "silu", "residual": x, **how}
                (x,) = projection(u, (down,), gate=g, **rest)
            return x

        return call

    def make_inputs(seed, batch=batch, layers=layers, width=width, mlp=mlp):
        square, wide = (width, width), (width, mlp)
        layer = (*5 * (square,), wide, wide, wide[::-1])
        x, d_out, *maps = inputs.random(seed, dtype, *2 * ((batch, 1, width),), *layers * layer)
        maps = [x * len(x) ** -0.5 for x in maps]
        return Inputs((x, jnp.ones(width, dtype), *maps), d_out)

    def definition(x, scale, *maps):
        def normed(x):
            return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + EPS) * scale[None, None]

        for *heads, out, gate, up, down in _layers(maps):
            q, k, v, g = (normed(x) @ kernel for kernel in heads)
            x = x + (normed(q + k + v) * jax.nn.sigmoid(g)) @ out
            x = x + (jax.nn.silu(normed(x) @ gate) * (normed(x) @ up)) @ down
        return x

    small = functools.cache(lambda: make_inputs(0, *SMALL))

    def exact(_: str) -> list[np.ndarray]:
        return [float64.value_and_gradients(definition, small().arrays, small().cotangent)[0]]

    products = 2.0 * batch * layers * (5 * width**2 + 3 * width * mlp)
    return Case(
        op="projection",
        shape=f"B{batch} L{layers} D{width} F{mlp}",
        dtype=dtype,
        implementations=tuple(IMPLEMENTATIONS),
        modes=(Mode("forward", function, ("x",), products),),
        make_inputs=make_inputs,
        small=small,
        exact=exact,
    )


def _layers(maps: tuple[jax.Array, ...]) -> list[tuple[jax.Array, ...]]:
    return [maps[i : i + MAPS] for i in range(0, len(maps), MAPS)]
