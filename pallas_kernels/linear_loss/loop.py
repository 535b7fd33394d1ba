"""One loop over chunks of tokens that forms a loss and, where it is differentiated, its gradients
with it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.linear_loss import sharded
from pallas_kernels.linear_loss.reference import Heads, Loss, Settings, Tokens, of_counted

HeadGradient = Float[Array, "V D"] | None  # None where no gradients are formed


class Chunks(NamedTuple):
    """How the tokens of one device are walked through.

    Attributes:
      size: tokens of a chunk; the last one is padded (weight 0).
      dealt: tokens are dealt to chunks in turn, not cut: where they are sharded, every chunk then
        holds some of every shard and nothing has to move.
      step: from a chunk, and the float32 gradient of the head by those before: the losses of each
        token, the gradient of hidden, and the head's with this chunk's added.
    """

    size: int
    dealt: bool
    step: Callable[
        [Tokens, HeadGradient],
        tuple[Float[Array, "C *n"], Float[Array, "C D"] | None, HeadGradient],
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def loss(
    cut: Callable[[Settings, Tokens, Heads], Chunks],
    settings: Settings,
    tokens: Tokens,
    heads: Heads,
) -> Loss:
    """Total and loss of each token; without a gradient to form, the loss alone."""
    return _run(False, cut, settings, tokens, heads)[0]


def _run(gradients, cut, settings, tokens, heads):
    walk = functools.partial(_walk, gradients, cut, settings)
    (token_losses, d_hidden), d_head = sharded.over_shards(walk, settings.axes, tokens, heads)
    total = jnp.sum(tokens.weights * token_losses)
    return (total, token_losses), (d_hidden, token_losses, d_head)


def _backward(cut, settings, residuals, grads):
    d_hidden, d_weights, d_head = ((grads[0] * x).astype(x.dtype) for x in residuals)
    none: Any = None  # of what is an integer, or the teacher's
    return Tokens(d_hidden, d_weights, none), Heads(d_head)


loss.defvjp(functools.partial(_run, True), _backward)


def _walk(gradients, cut, settings, tokens, heads):
    """On one device: loss of each token and gradient of its hidden state, gradient of each row."""
    size, dealt, step = cut(settings, tokens, heads)
    length = len(tokens.hidden)
    count = -(-length // size)

    def split(x):
        x = sharded.padded(x, size * count)
        if dealt:
            return jnp.swapaxes(x.reshape(size, count, *x.shape[1:]), 0, 1)
        return x.reshape(count, size, *x.shape[1:])

    def join(x):
        x = jnp.swapaxes(x, 0, 1) if dealt else x
        return x.reshape(-1, *x.shape[2:])[:length]

    def chunk(d_head, tokens):
        token_loss, d_hidden, d_head = step(tokens, d_head)
        return d_head, (of_counted(token_loss, tokens.weights), d_hidden)

    start = jnp.zeros(heads.student.shape, jnp.float32) if gradients else None
    d_head, by_token = jax.lax.scan(chunk, start, jax.tree.map(split, tokens))
    if d_head is not None:  # once, after all chunks
        d_head = sharded.summed(d_head, settings.axes.tokens).astype(heads.student.dtype)
    return jax.tree.map(join, by_token), d_head
