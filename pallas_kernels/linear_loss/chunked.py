"""One loop over chunks of tokens that forms a loss and, where it is differentiated, its gradients
with it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss.reference import logits
from pallas_kernels.products import product

# Float32 logits of one chunk, in bytes.
CHUNK_BYTES = {"cpu": 2**25, "gpu": 2**29, "tpu": 2**28}

# Logits of a chunk, what else its tokens have, constants -> number per token, its slope by logit.
PerToken = Callable[[Float[Array, "C V"], Any, Any], tuple[Float[Array, "C"], Float[Array, "C V"]]]


def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_cross_entropy`."""
    return _loss(_cross_entropy_per_token, hidden, head, weights, labels, ())


def kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl`."""
    per_token = functools.partial(_kl_per_token, temperature=temperature)
    return _loss(per_token, student_hidden, student_head, weights, teacher_hidden, teacher_head)


def _cross_entropy_per_token(
    values: Float[Array, "C V"], labels: Int[Array, "C"], _: Any
) -> tuple[Float[Array, "C"], Float[Array, "C V"]]:
    log_probs = jax.nn.log_softmax(values, axis=-1)
    number = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    hit = labels[:, None] == jnp.arange(values.shape[1], dtype=labels.dtype)[None]
    return number, jnp.exp(log_probs) - hit


def _kl_per_token(
    values: Float[Array, "C V"],
    teacher_hidden: Float[Array, "C E"],
    teacher_head: Float[Array, "V E"],
    temperature: float,
) -> tuple[Float[Array, "C"], Float[Array, "C V"]]:
    student = jax.nn.log_softmax(values / temperature, axis=-1)
    teacher = jax.nn.log_softmax(logits(teacher_hidden, teacher_head) / temperature, axis=-1)
    number = temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return number, temperature * (jnp.exp(student) - jnp.exp(teacher))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    per_token: PerToken,
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    weights: Float[Array, "T"],
    extra: Any,
    constants: Any,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """Without a gradient to form: the loss alone."""
    matrix = head.astype(hidden.dtype)

    def chunk(_, tokens):
        hidden, weights, extra = tokens
        number, _ = per_token(product("td,vd->tv", hidden, matrix), extra, constants)
        return None, jnp.where(weights != 0, number, 0.0)

    _, numbers = jax.lax.scan(chunk, None, _chunks((hidden, weights, extra), head.shape[0]))
    numbers = _join(numbers, hidden.shape[0])
    return jnp.sum(weights * numbers), numbers


def _forward(per_token, hidden, head, weights, extra, constants):
    matrix = head.astype(hidden.dtype)

    def chunk(toward_head, tokens):
        hidden, weights, extra = tokens
        number, slope = per_token(product("td,vd->tv", hidden, matrix), extra, constants)
        slope = (weights[:, None] * slope).astype(hidden.dtype)
        toward_hidden = product("tv,vd->td", slope, matrix).astype(hidden.dtype)
        return toward_head + product("tv,td->vd", slope, hidden), (
            jnp.where(weights != 0, number, 0.0),
            toward_hidden,
        )

    zeros = jnp.zeros(head.shape, jnp.float32)
    toward_head, (numbers, toward_hidden) = jax.lax.scan(
        chunk, zeros, _chunks((hidden, weights, extra), head.shape[0])
    )
    numbers, toward_hidden = (_join(x, hidden.shape[0]) for x in (numbers, toward_hidden))
    kept = toward_hidden, toward_head.astype(head.dtype), numbers
    return (jnp.sum(weights * numbers), numbers), kept


def _backward(per_token, kept, grads):
    toward_total, _ = grads
    toward_hidden, toward_head, toward_weights = ((toward_total * x).astype(x.dtype) for x in kept)
    return toward_hidden, toward_head, toward_weights, None, None


_loss.defvjp(_forward, _backward)


def _chunks(tokens: Any, vocabulary: int) -> Any:
    """Pads every array of tokens (weight 0) and deals the tokens to chunks in turn.

    Dealt, not cut: where tokens are sharded, every chunk then holds some of every shard and
    nothing has to move.
    """
    length = jax.tree.leaves(tokens)[0].shape[0]
    size = max(8, CHUNK_BYTES[dispatch.platform()] // (4 * vocabulary) // 8 * 8)
    count = -(-length // size)
    size = -(-length // count)

    def deal(x):
        x = jnp.pad(x, [(0, size * count - length)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(deal, tokens)


def _join(x: Float[Array, "M C *D"], length: int) -> Float[Array, "T *D"]:
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:length]
