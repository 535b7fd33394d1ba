"""A loss whose gradients are formed with it: what differentiating the implementations by chunks
means."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.linear_loss import sharded
from pallas_kernels.mesh import MeshAxes

# Hidden, head and weights: what the total is differentiated by.
Inputs = tuple[Float[Array, "T D"], Float[Array, "V D"], Float[Array, "T"]]


class Loops(NamedTuple):
    """The loop over chunks on one device, of (what is by token, what is by row of the vocabulary):
    (hidden, weights, extra) and (head, constants).

    Attributes:
      numbers: to (numbers of the tokens, None).
      gradients: to ((numbers, gradient toward hidden), gradient toward head).
    """

    numbers: Callable[[Any, Any], tuple[Any, Any]]
    gradients: Callable[[Any, Any], tuple[Any, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss(
    loops: Loops, axes: MeshAxes, inputs: Inputs, extra: Any, constants: Any
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """Total and numbers; without a gradient to form, the loss alone."""
    hidden, head, weights = inputs
    numbers, _ = sharded.over_shards(
        loops.numbers, axes, (hidden, weights, extra), (head, constants)
    )
    return jnp.sum(weights * numbers), numbers


def _forward(loops, axes, inputs, extra, constants):
    hidden, head, weights = inputs
    tokens, rows = (hidden, weights, extra), (head, constants)
    (numbers, toward_hidden), toward_head = sharded.over_shards(loops.gradients, axes, tokens, rows)
    return (jnp.sum(weights * numbers), numbers), (toward_hidden, toward_head, numbers)


def _backward(loops, axes, kept, grads):
    toward_total, _ = grads
    return tuple((toward_total * x).astype(x.dtype) for x in kept), None, None


loss.defvjp(_forward, _backward)
