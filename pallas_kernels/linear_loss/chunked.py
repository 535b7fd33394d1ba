"""One loop over chunks of tokens that forms a loss and, where it is differentiated, its gradients
with it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import per_token, sharded, vjp
from pallas_kernels.mesh import UNSHARDED, MeshAxes
from pallas_kernels.products import product

# Float32 logits of one chunk, in bytes, unless that would be fewer tokens: every chunk reads the head
# twice and adds to all of its gradient, which fewer tokens would not outweigh.
CHUNK_BYTES = {"cpu": 2**25, "gpu": 2**30, "tpu": 2**28}
LEAST_TOKENS = 256

# Logits of a chunk, what else its tokens have, constants -> loss per token, its gradient by logit.
PerToken = Callable[..., tuple[Float[Array, "C"], Float[Array, "C V"]]]


def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_cross_entropy`."""
    function = functools.partial(per_token.cross_entropy, vocabulary=len(head))
    return vjp.loss(_loops(function, axes), axes, (hidden, head, weights), labels, ())


def kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    temperature: float,
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl`."""
    function = functools.partial(per_token.kl, temperature=temperature)
    inputs = student_hidden, student_head, weights
    return vjp.loss(_loops(function, axes), axes, inputs, teacher_hidden, teacher_head)


def kl_top_k(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_log_probs: Float[Array, "T k"],
    teacher_indices: Int[Array, "T k"],
    weights: Float[Array, "T"],
    temperature: float,
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl_top_k`."""
    function = functools.partial(
        per_token.kl_top_k, temperature=temperature, vocabulary=len(student_head)
    )
    inputs = student_hidden, student_head, weights
    extra = teacher_log_probs, teacher_indices
    return vjp.loss(_loops(function, axes), axes, inputs, extra, ())


def _loops(function: PerToken, axes: MeshAxes) -> vjp.Loops:
    function = functools.partial(function, axes=axes.vocabulary)
    return vjp.Loops(
        functools.partial(_token_losses, function), functools.partial(_gradients, function, axes)
    )


def _token_losses(function, tokens, rows):
    """The loop without gradients: loss of each token."""
    (hidden, _, _), (head, constants) = tokens, rows
    matrix = head.astype(hidden.dtype)

    def chunk(_, tokens):
        hidden, weights, extra = tokens
        token_loss, _ = function(product("td,vd->tv", hidden, matrix), extra, constants)
        return None, jnp.where(weights != 0, token_loss, 0.0)

    _, token_losses = jax.lax.scan(chunk, None, _chunks(tokens, len(head)))
    return _join(token_losses, len(hidden)), None


def _gradients(function, axes, tokens, rows):
    """The loop with them: loss of each token and gradient of its hidden state, gradient of each row."""
    (hidden, _, _), (head, constants) = tokens, rows
    matrix = head.astype(hidden.dtype)

    def chunk(d_head, tokens):
        hidden, weights, extra = tokens
        token_loss, d_logits = function(product("td,vd->tv", hidden, matrix), extra, constants)
        d_logits = (weights[:, None] * d_logits).astype(hidden.dtype)
        d_hidden = sharded.summed(product("tv,vd->td", d_logits, matrix), axes.vocabulary)
        return d_head + product("tv,td->vd", d_logits, hidden), (
            jnp.where(weights != 0, token_loss, 0.0),
            d_hidden.astype(hidden.dtype),
        )

    zeros = jnp.zeros(head.shape, jnp.float32)
    d_head, by_token = jax.lax.scan(chunk, zeros, _chunks(tokens, len(head)))
    # Once, after all chunks.
    d_head = sharded.summed(d_head, axes.tokens).astype(head.dtype)
    return tuple(_join(x, len(hidden)) for x in by_token), d_head


def _chunks(tokens: Any, vocabulary: int) -> Any:
    """Pads every array of tokens (weight 0) and deals the tokens to chunks in turn.

    Dealt, not cut: where tokens are sharded, every chunk then holds some of every shard and
    nothing has to move.
    """
    length = jax.tree.leaves(tokens)[0].shape[0]
    fitting = CHUNK_BYTES[dispatch.platform()] // (4 * vocabulary) // 8 * 8
    size = max(LEAST_TOKENS, fitting)
    count = -(-length // size)
    size = -(-length // count)

    def deal(x):
        x = sharded.padded(x, size * count)
        return jnp.swapaxes(x.reshape(size, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(deal, tokens)


def _join(x: Float[Array, "M C *D"], length: int) -> Float[Array, "T *D"]:
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:length]
