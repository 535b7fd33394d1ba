"""The definitions: every logit of every token, differentiated by JAX."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pallas_kernels.mesh import UNSHARDED, MeshAxes
from pallas_kernels.products import product

Loss = tuple[Float[Array, ""], Float[Array, "T *n"]]  # the weighted total, losses of each token
Divergence = Literal["kl", "reverse_kl", "jensen_shannon"]
LogProbs = Float[Array, "T V"]


class Settings(NamedTuple):
    """All that a loss knows before it sees arrays; the vocabulary is that of all devices."""

    vocabulary: int
    temperature: float = 1.0
    axes: MeshAxes = UNSHARDED
    divergence: Divergence = "kl"


class Tokens(NamedTuple):
    """Arrays by token; targets are labels, the teacher's hidden states, both of them, or its top k.

    A loss that has several terms has as many weights.
    """

    hidden: Float[Array, "T D"]
    weights: Float[Array, "T *n"]
    targets: tuple[Shaped[Array, "T *k"], ...]


class Heads(NamedTuple):
    """Arrays by row of the vocabulary."""

    student: Float[Array, "V D"]
    teacher: Float[Array, "V E"] | None = None


def cross_entropy(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_cross_entropy`."""
    (labels,) = tokens.targets
    return _total(_of_labels(_log_probs(settings, tokens.hidden, heads.student), labels), tokens)


def kl(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl`."""
    assert heads.teacher is not None
    student = _log_probs(settings, tokens.hidden, heads.student)
    teacher = _log_probs(settings, tokens.targets[0], heads.teacher)
    return _total(settings.temperature**2 * DIVERGENCES["kl"](student, teacher), tokens)


def distillation(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_distillation`."""
    assert heads.teacher is not None
    sides = (tokens.hidden, heads.student), (tokens.targets[0], heads.teacher)
    soft = (_log_probs(settings, *side) for side in sides)
    divergence = settings.temperature**2 * DIVERGENCES[settings.divergence](*soft)
    plain = (_log_probs(settings._replace(temperature=1.0), *side) for side in sides)
    entropies = (_of_labels(log_probs, tokens.targets[1]) for log_probs in plain)
    return _total(jnp.stack([divergence, *entropies], axis=-1), tokens)


def _kl(student: LogProbs, teacher: LogProbs) -> Float[Array, "T"]:
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def _reverse_kl(student: LogProbs, teacher: LogProbs) -> Float[Array, "T"]:
    return _kl(teacher, student)


def _jensen_shannon(student: LogProbs, teacher: LogProbs) -> Float[Array, "T"]:
    mixture = jnp.logaddexp(student, teacher) - jnp.log(2.0)
    return (_kl(mixture, teacher) + _kl(mixture, student)) / 2


DIVERGENCES: Mapping[str, Callable[[LogProbs, LogProbs], Float[Array, "T"]]] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
}
"""Of each token, from the log-probabilities of student and teacher."""


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


def of_counted(
    x: Shaped[Array, "T *n"], weights: Float[Array, "T *m"], fill: float = 0
) -> Shaped[Array, "T *n"]:
    """x where a token has a weight that is not 0, `fill` where it is skipped."""
    counted = jnp.any(weights != 0, axis=tuple(range(1, weights.ndim)))
    return jnp.where(jnp.expand_dims(counted, tuple(range(1, x.ndim))), x, fill)


def _of_labels(log_probs: LogProbs, labels: Int[Array, "T"]) -> Float[Array, "T"]:
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def _total(token_losses: Float[Array, "T *n"], tokens: Tokens) -> Loss:
    token_losses = of_counted(token_losses, tokens.weights)
    return jnp.sum(tokens.weights * token_losses), token_losses
