"""The definitions: every logit of every token, differentiated by JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from pallas_kernels.mesh import UNSHARDED, MeshAxes
from pallas_kernels.products import product

Loss = tuple[Float[Array, ""], Float[Array, "T"]]  # the weighted total, the loss of each token


class Settings(NamedTuple):
    """All that a loss knows before it sees arrays; the vocabulary is that of all devices."""

    vocabulary: int
    temperature: float = 1.0
    axes: MeshAxes = UNSHARDED


class Tokens(NamedTuple):
    """Arrays by token; targets are labels, the teacher's hidden states, or its top k."""

    hidden: Float[Array, "T D"]
    weights: Float[Array, "T"]
    targets: tuple[Shaped[Array, "T *k"], ...]


class Heads(NamedTuple):
    """Arrays by row of the vocabulary."""

    student: Float[Array, "V D"]
    teacher: Float[Array, "V E"] | None = None


def cross_entropy(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_cross_entropy`."""
    (labels,) = tokens.targets
    log_probs = _log_probs(settings, tokens.hidden, heads.student)
    return _total(-jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0], tokens)


def kl(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl`."""
    assert heads.teacher is not None
    student = _log_probs(settings, tokens.hidden, heads.student)
    teacher = _log_probs(settings, tokens.targets[0], heads.teacher)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return _total(settings.temperature**2 * divergence, tokens)


def kl_top_k(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl_top_k`."""
    log_probs, indices = tokens.targets
    student = _log_probs(settings, tokens.hidden, heads.student)
    kept = jnp.take_along_axis(student, indices, axis=-1)
    probs = jnp.exp(log_probs)
    # Where a probability is 0 its logarithm is -inf, and the term 0.
    token_losses = jnp.sum(jnp.where(probs > 0, probs * (log_probs - kept), 0.0), axis=-1)
    if indices.shape[1] < student.shape[1]:
        rest = jnp.put_along_axis(student, indices, -jnp.inf, axis=-1, inplace=False)
        rest = jax.scipy.special.logsumexp(rest, axis=-1)
        tail = tail_mass(log_probs, student.shape[1])
        token_losses += jax.scipy.special.xlogy(tail, tail) - tail * rest
    return _total(settings.temperature**2 * token_losses, tokens)


def tail_mass(log_probs: Float[Array, "T k"], vocabulary: int) -> Float[Array, "T"]:
    """What the k largest probabilities leave for all others."""
    if log_probs.shape[1] == vocabulary:
        return jnp.zeros(log_probs.shape[:1], jnp.float32)
    return jnp.maximum(1 - jnp.sum(jnp.exp(log_probs), axis=-1), 0.0)


def logits(hidden: Float[Array, "T D"], head: Float[Array, "V D"]) -> Float[Array, "T V"]:
    """Float32 logits of a product in hidden's dtype."""
    return product("td,vd->tv", hidden, head.astype(hidden.dtype))


def _log_probs(
    settings: Settings, hidden: Float[Array, "T D"], head: Float[Array, "V D"]
) -> Float[Array, "T V"]:
    return jax.nn.log_softmax(logits(hidden, head) / settings.temperature, axis=-1)


def _total(token_losses: Float[Array, "T"], tokens: Tokens) -> Loss:
    token_losses = jnp.where(tokens.weights != 0, token_losses, 0.0)
    return jnp.sum(tokens.weights * token_losses), token_losses
