"""The definitions: every logit of every token, differentiated by JAX."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.products import product


def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_cross_entropy`."""
    log_probs = jax.nn.log_softmax(logits(hidden, head), axis=-1)
    token_losses = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    return _total(token_losses, weights)


def kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl`."""
    student = jax.nn.log_softmax(logits(student_hidden, student_head) / temperature, axis=-1)
    teacher = jax.nn.log_softmax(logits(teacher_hidden, teacher_head) / temperature, axis=-1)
    token_losses = temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return _total(token_losses, weights)


def kl_top_k(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_log_probs: Float[Array, "T k"],
    teacher_indices: Int[Array, "T k"],
    weights: Float[Array, "T"],
    temperature: float,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl_top_k`."""
    student = jax.nn.log_softmax(logits(student_hidden, student_head) / temperature, axis=-1)
    kept = jnp.take_along_axis(student, teacher_indices, axis=-1)
    probs = jnp.exp(teacher_log_probs)
    # Where a probability is 0 its logarithm is -inf, and the term 0.
    terms = jnp.where(probs > 0, probs * (teacher_log_probs - kept), 0.0)
    token_losses = jnp.sum(terms, axis=-1)
    if teacher_indices.shape[1] < student.shape[1]:
        rest = jnp.put_along_axis(student, teacher_indices, -jnp.inf, axis=-1, inplace=False)
        rest = jax.scipy.special.logsumexp(rest, axis=-1)
        tail = tail_mass(teacher_log_probs, student.shape[1])
        token_losses += jax.scipy.special.xlogy(tail, tail) - tail * rest
    return _total(temperature**2 * token_losses, weights)


def tail_mass(log_probs: Float[Array, "T k"], vocabulary: int) -> Float[Array, "T"]:
    """What the k largest probabilities leave for all others."""
    if log_probs.shape[1] == vocabulary:
        return jnp.zeros(log_probs.shape[:1], jnp.float32)
    return jnp.maximum(1 - jnp.sum(jnp.exp(log_probs), axis=-1), 0.0)


def logits(hidden: Float[Array, "T D"], head: Float[Array, "V D"]) -> Float[Array, "T V"]:
    """Float32 logits of a product in hidden's dtype."""
    return product("td,vd->tv", hidden, head.astype(hidden.dtype))


def _total(
    token_losses: Float[Array, "T"], weights: Float[Array, "T"]
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    token_losses = jnp.where(weights != 0, token_losses, 0.0)
    return jnp.sum(weights * token_losses), token_losses
