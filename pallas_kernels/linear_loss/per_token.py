"""Loss of each token, and its gradient by each logit, from a chunk's logits.

`axes` are the mesh axes over which the vocabulary is cut: a device sees its own columns, and what a
softmax needs of the others is exchanged, at most five numbers per token. None are exchanged where
there are no axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.linear_loss.reference import logits, tail_mass

Axes = tuple[str, ...]


def cross_entropy(
    values: Float[Array, "C V"],
    labels: Int[Array, "C"],
    _: object,
    *,
    vocabulary: int,
    axes: Axes,
) -> tuple[Float[Array, "C"], Float[Array, "C V"]]:
    """As `linear_cross_entropy`; exchanges a maximum and two sums."""
    columns, here = own_columns(labels[:, None], values.shape[1], axes)
    (top,) = maxima(axes, *_tops(values))
    values = values - top[:, None]
    exps = jnp.exp(values)
    local = jnp.where(here, jnp.take_along_axis(values, columns, axis=-1), 0.0)
    total, logit = sums(axes, *_totals(exps, local))
    hit = here & (columns == jnp.arange(values.shape[1])[None])
    token_loss = known(jnp.log(total) - logit, labels, vocabulary)
    return token_loss, exps / total[:, None] - hit


def kl(
    values: Float[Array, "C V"],
    teacher_hidden: Float[Array, "C E"],
    teacher_head: Float[Array, "V E"],
    *,
    temperature: float,
    axes: Axes,
) -> tuple[Float[Array, "C"], Float[Array, "C V"]]:
    """As `linear_kl`; exchanges two maxima and three sums."""
    student = values / temperature
    teacher = logits(teacher_hidden, teacher_head) / temperature
    tops = maxima(axes, *_tops(student, teacher))
    student, teacher = (x - top[:, None] for x, top in zip((student, teacher), tops, strict=True))
    s, t = jnp.exp(student), jnp.exp(teacher)
    s_total, t_total, gap = sums(axes, *_totals(s, t, t * (teacher - student)))
    token_loss = divergence(s_total, t_total, gap, temperature)
    return token_loss, temperature * (s / s_total[:, None] - t / t_total[:, None])


def kl_top_k(
    values: Float[Array, "C V"],
    teacher: tuple[Float[Array, "C k"], Int[Array, "C k"]],
    _: object,
    *,
    temperature: float,
    vocabulary: int,
    axes: Axes,
) -> tuple[Float[Array, "C"], Float[Array, "C V"]]:
    """As `linear_kl_top_k`; exchanges two maxima and three sums."""
    log_probs, indices = teacher
    probs, tail = jnp.exp(log_probs), tail_mass(log_probs, vocabulary)
    columns, here = own_columns(indices, values.shape[1], axes)
    student = values / temperature
    rows, dropped = jnp.arange(len(student))[:, None], jnp.where(here, columns, student.shape[1])
    rest = student.at[rows, dropped].set(-jnp.inf, mode="drop")
    tops = maxima(axes, *_tops(student, rest))
    student = student - tops[0][:, None]
    # Finite where every column is one of the k.
    rest = rest - jnp.maximum(tops[1], jnp.finfo(rest.dtype).min)[:, None]
    kept = jnp.where(here, jnp.take_along_axis(student, columns, axis=-1), 0.0)
    s, u = jnp.exp(student), jnp.exp(rest)
    s_total, u_total, cross = sums(axes, *_totals(s, u, probs * kept))
    u_total = jnp.maximum(u_total, 1.0)  # it holds exp(0), unless there is no rest and no tail

    mass = jnp.sum(probs, axis=-1) + tail
    own_terms = jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=-1)
    own_terms += jax.scipy.special.xlogy(tail, tail)
    log_rest = jnp.where(tail > 0, jnp.log(u_total) + tops[1] - tops[0], 0.0)
    token_loss = own_terms - cross - tail * log_rest + mass * jnp.log(s_total)
    d_logits = (mass / s_total)[:, None] * s - (tail / u_total)[:, None] * u
    d_logits = d_logits.at[rows, dropped].add(-probs, mode="drop")
    return temperature**2 * token_loss, temperature * d_logits


def known(
    token_losses: Float[Array, "C"], labels: Int[Array, "C"], vocabulary: int
) -> Float[Array, "C"]:
    """NaN for a label that no device holds: it must not pass for one whose logit is the maximum."""
    return jnp.where((labels >= 0) & (labels < vocabulary), token_losses, jnp.nan)


def divergence(
    s_total: Float[Array, "C"],
    t_total: Float[Array, "C"],
    gap: Float[Array, "C"],
    temperature: float,
) -> Float[Array, "C"]:
    """KL by the sums of exp(s), exp(t) and exp(t) (t - s), where s and t are logits over r, less
    their maxima."""
    return temperature**2 * (gap / t_total - jnp.log(t_total) + jnp.log(s_total))


def own_columns(
    indices: Int[Array, "C k"], columns: int, axes: Axes
) -> tuple[Int[Array, "C k"], Bool[Array, "C k"]]:
    """The same places among this device's columns, and which of them are there."""
    first = jax.lax.axis_index(axes) * columns if axes else 0
    own = indices - first
    return jnp.clip(own, 0, columns - 1), (own >= 0) & (own < columns)


def maxima(axes: Axes, *own: Float[Array, "C"]) -> Float[Array, "n C"]:
    """Of each over all devices; one exchange."""
    return jax.lax.pmax(jnp.stack(own), axes) if axes else jnp.stack(own)


def sums(axes: Axes, *own: Float[Array, "C"]) -> Float[Array, "n C"]:
    """Of each over all devices; one exchange."""
    return jax.lax.psum(jnp.stack(own), axes) if axes else jnp.stack(own)


def _tops(*arrays: Float[Array, "C _"]) -> list[Float[Array, "C"]]:
    return [jnp.max(x, axis=-1) for x in arrays]


def _totals(*arrays: Float[Array, "C _"]) -> list[Float[Array, "C"]]:
    return [jnp.sum(x, axis=-1) for x in arrays]
