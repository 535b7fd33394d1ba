"""All linear maps that one token goes through in a few layers, norms, gates and residuals included."""

import jax
import jax.numpy as jnp

from pallas_kernels.bench.op import Inputs, Mode, Op, random
from pallas_kernels.projection import IMPLEMENTATIONS, Norm, projection

EPS = 1e-6
MAPS = 8  # of a layer: queries, keys, values, gate, output; gate, up and down of the MLP


def _layers(maps):
    return [maps[i : i + MAPS] for i in range(0, len(maps), MAPS)]


def _token(x, scale, *maps, implementation):
    norm, how = Norm(scale, EPS), {"implementation": implementation}
    for *heads, out, gate, up, down in _layers(maps):
        q, k, v, g = projection(x, tuple(heads), norm=norm, **how)
        (x,) = projection(q + k + v, (out,), norm=norm, gate=g, residual=x, **how)
        g, u = projection(x, (gate, up), norm=norm, **how)
        (x,) = projection(u, (down,), gate=g, activation="silu", residual=x, **how)
    return x


def _definition(x, scale, *maps):
    def normed(x):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + EPS) * scale[None, None]

    for *heads, out, gate, up, down in _layers(maps):
        q, k, v, g = (normed(x) @ kernel for kernel in heads)
        x = x + (normed(q + k + v) * jax.nn.sigmoid(g)) @ out
        x = x + (jax.nn.silu(normed(x) @ gate) * (normed(x) @ up)) @ down
    return x


def _inputs(seed, dtype, batch, layers, width, mlp):
    square, wide = (width, width), (width, mlp)
    layer = (*5 * (square,), wide, wide, wide[::-1])
    x, *maps = random(seed, dtype, (batch, 1, width), *layers * layer)
    return Inputs((x, jnp.ones(width, dtype), *(x * len(x) ** -0.5 for x in maps)), ())


def _products(batch, layers, width, mlp):
    return 2.0 * batch * layers * (5 * width**2 + 3 * width * mlp)


PROJECTION = Op(
    name="projection",
    axes="B L D F",
    # Rows, layers, width and width of the MLP; the 2B model for one row and for a batch.
    shapes=((1, 8, 2048, 6144), (8, 8, 2048, 6144)),
    cpu_shapes=((1, 2, 128, 384),),
    implementations=IMPLEMENTATIONS,
    call=_token,
    definition=_definition,
    inputs=_inputs,
    modes=(Mode("forward", _products, ("x",)),),
    checked={"B": 1, "L": 1, "D": 128, "F": 384},
    cpu_only=(),
)
