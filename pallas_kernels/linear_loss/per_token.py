"""Number of each token, and its slope by each logit, from a chunk's logits.

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
    columns, here = _own(labels[:, None], values.shape[1], axes)
    (top,) = _maxima(axes, values)
    values = values - top[:, None]
    exps = jnp.exp(values)
    mine = jnp.where(here, jnp.take_along_axis(values, columns, axis=-1), 0.0)
    total, logit = _sums(axes, exps, mine)
    hit = here & (columns == jnp.arange(values.shape[1])[None])
    # A label that no device holds must not pass for one whose logit is the maximum.
    known = (labels >= 0) & (labels < vocabulary)
    return jnp.where(known, jnp.log(total) - logit, jnp.nan), exps / total[:, None] - hit


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
    tops = _maxima(axes, student, teacher)
    student, teacher = (x - top[:, None] for x, top in zip((student, teacher), tops, strict=True))
    s, t = jnp.exp(student), jnp.exp(teacher)
    s_total, t_total, gap = _sums(axes, s, t, t * (teacher - student))
    number = temperature**2 * (gap / t_total - jnp.log(t_total) + jnp.log(s_total))
    return number, temperature * (s / s_total[:, None] - t / t_total[:, None])


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
    columns, here = _own(indices, values.shape[1], axes)
    student = values / temperature
    rows, dropped = jnp.arange(len(student))[:, None], jnp.where(here, columns, student.shape[1])
    rest = student.at[rows, dropped].set(-jnp.inf, mode="drop")
    tops = _maxima(axes, student, rest)
    student = student - tops[0][:, None]
    # Finite where every column is one of the k.
    rest = rest - jnp.maximum(tops[1], jnp.finfo(rest.dtype).min)[:, None]
    kept = jnp.where(here, jnp.take_along_axis(student, columns, axis=-1), 0.0)
    s, u = jnp.exp(student), jnp.exp(rest)
    s_total, u_total, cross = _sums(axes, s, u, probs * kept)
    u_total = jnp.maximum(u_total, 1.0)  # it holds exp(0), unless there is no rest and no tail

    mass = jnp.sum(probs, axis=-1) + tail
    own_terms = jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=-1)
    own_terms += jax.scipy.special.xlogy(tail, tail)
    log_rest = jnp.where(tail > 0, jnp.log(u_total) + tops[1] - tops[0], 0.0)
    number = own_terms - cross - tail * log_rest + mass * jnp.log(s_total)
    slope = (mass / s_total)[:, None] * s - (tail / u_total)[:, None] * u
    slope = slope.at[rows, dropped].add(-probs, mode="drop")
    return temperature**2 * number, temperature * slope


def _own(
    indices: Int[Array, "C k"], columns: int, axes: Axes
) -> tuple[Int[Array, "C k"], Bool[Array, "C k"]]:
    """The same places among this device's columns, and which of them are there."""
    first = jax.lax.axis_index(axes) * columns if axes else 0
    own = indices - first
    return jnp.clip(own, 0, columns - 1), (own >= 0) & (own < columns)


def _maxima(axes: Axes, *arrays: Float[Array, "C _"]) -> Float[Array, "n C"]:
    own = jnp.stack([jnp.max(x, axis=-1) for x in arrays])
    return jax.lax.pmax(own, axes) if axes else own


def _sums(axes: Axes, *arrays: Float[Array, "C _"]) -> Float[Array, "n C"]:
    own = jnp.stack([jnp.sum(x, axis=-1) for x in arrays])
    return jax.lax.psum(own, axes) if axes else own
