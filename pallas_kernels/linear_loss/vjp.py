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
      token_losses: to (loss of each token, None).
      gradients: to ((loss of each token, gradient of hidden), gradient of head).
    """

    token_losses: Callable[[Any, Any], tuple[Any, Any]]
    gradients: Callable[[Any, Any], tuple[Any, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss(
    loops: Loops, axes: MeshAxes, inputs: Inputs, extra: Any, constants: Any
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """Total and loss of each token; without a gradient to form, the loss alone."""
    hidden, head, weights = inputs
    token_losses, _ = sharded.over_shards(
        loops.token_losses, axes, (hidden, weights, extra), (head, constants)
    )
    return jnp.sum(weights * token_losses), token_losses


def _forward(loops, axes, inputs, extra, constants):
    hidden, head, weights = inputs
    tokens, rows = (hidden, weights, extra), (head, constants)
    (token_losses, d_hidden), d_head = sharded.over_shards(loops.gradients, axes, tokens, rows)
    return (jnp.sum(weights * token_losses), token_losses), (d_hidden, d_head, token_losses)


def _backward(loops, axes, residuals, grads):
    d_total, _ = grads
    return tuple((d_total * x).astype(x.dtype) for x in residuals), None, None


loss.defvjp(_forward, _backward)
