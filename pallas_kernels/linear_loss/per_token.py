"""Loss of each token, and its gradient by each logit times its weight, from a chunk's logits.

The vocabulary may be cut over mesh axes: a device sees its own columns, and what a softmax needs of the
others is exchanged, at most five numbers per token. None are exchanged where there are no axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.linear_loss.reference import Heads, Settings, Tokens, logits, tail_mass
from pallas_kernels.mesh import AxisNames

Values = Float[Array, "C V"]
ByToken = Float[Array, "C"]
Over = int | tuple[int, ...]  # axes of an array


def cross_entropy(
    settings: Settings, values: Values, tokens: Tokens, _: Heads
) -> tuple[ByToken, Values]:
    """As `linear_cross_entropy`; exchanges a maximum and two sums."""
    axes, (labels,) = settings.axes.vocabulary, tokens.targets
    columns, here = own_columns(labels[:, None], values.shape[1], axes)
    (top,) = maxima(axes, -1, values)
    values = values - top[:, None]
    exps = jnp.exp(values)
    local = jnp.where(here, jnp.take_along_axis(values, columns, axis=-1), 0.0)
    total, logit = sums(axes, -1, exps, local)
    hit = here & (columns == jnp.arange(values.shape[1])[None])
    token_loss = known(jnp.log(total) - logit, labels, settings.vocabulary)
    return token_loss, tokens.weights[:, None] * (exps / total[:, None] - hit)


def kl(settings: Settings, values: Values, tokens: Tokens, heads: Heads) -> tuple[ByToken, Values]:
    """As `linear_kl`; exchanges two maxima and three sums."""
    assert heads.teacher is not None
    teacher = logits(tokens.targets[0], heads.teacher)
    token_loss, d_logits = kl_of_logits(settings, values, teacher)
    return token_loss, tokens.weights[:, None] * d_logits


def kl_of_logits(settings: Settings, student: Values, teacher: Values) -> tuple[ByToken, Values]:
    """KL(teacher || student) of each token, times r^2, and its gradient by the student's logits."""
    axes, temperature = settings.axes.vocabulary, settings.temperature
    both = student / temperature, teacher / temperature
    tops = maxima(axes, -1, *both)
    student, teacher = (x - top[:, None] for x, top in zip(both, tops, strict=True))
    s, t = jnp.exp(student), jnp.exp(teacher)
    s_total, t_total, gap = sums(axes, -1, s, t, t * (teacher - student))
    token_loss = divergence(s_total, t_total, gap, temperature)
    return token_loss, temperature * (s / s_total[:, None] - t / t_total[:, None])


def kl_top_k(
    settings: Settings, values: Values, tokens: Tokens, _: Heads
) -> tuple[ByToken, Values]:
    """As `linear_kl_top_k`; exchanges two maxima and three sums."""
    axes, (log_probs, indices) = settings.axes.vocabulary, tokens.targets
    probs, tail = jnp.exp(log_probs), tail_mass(log_probs, settings.vocabulary)
    columns, here = own_columns(indices, values.shape[1], axes)
    student = values / settings.temperature
    rows, dropped = jnp.arange(len(student))[:, None], jnp.where(here, columns, student.shape[1])
    rest = student.at[rows, dropped].set(-jnp.inf, mode="drop")
    tops = maxima(axes, -1, student, rest)
    student = student - tops[0][:, None]
    # Finite where every column is one of the k.
    rest = rest - jnp.maximum(tops[1], jnp.finfo(rest.dtype).min)[:, None]
    kept = jnp.where(here, jnp.take_along_axis(student, columns, axis=-1), 0.0)
    s, u = jnp.exp(student), jnp.exp(rest)
    s_total, u_total, cross = sums(axes, -1, s, u, probs * kept)
    u_total = jnp.maximum(u_total, 1.0)  # it holds exp(0), unless there is no rest and no tail

    mass = jnp.sum(probs, axis=-1) + tail
    own_terms = jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=-1)
    own_terms += jax.scipy.special.xlogy(tail, tail)
    log_rest = jnp.where(tail > 0, jnp.log(u_total) + tops[1] - tops[0], 0.0)
    token_loss = own_terms - cross - tail * log_rest + mass * jnp.log(s_total)
    d_logits = (mass / s_total)[:, None] * s - (tail / u_total)[:, None] * u
    d_logits = d_logits.at[rows, dropped].add(-probs, mode="drop")
    d_logits = tokens.weights[:, None] * (settings.temperature * d_logits)
    return settings.temperature**2 * token_loss, d_logits


def known(token_losses: ByToken, labels: Int[Array, "C"], vocabulary: int) -> ByToken:
    """NaN for a label that no device holds: it must not pass for one whose logit is the maximum."""
    return jnp.where((labels >= 0) & (labels < vocabulary), token_losses, jnp.nan)


def divergence(s_total: ByToken, t_total: ByToken, gap: ByToken, temperature: float) -> ByToken:
    """KL by the sums of exp(s), exp(t) and exp(t) (t - s), where s and t are logits over r, less
    their maxima."""
    return temperature**2 * (gap / t_total - jnp.log(t_total) + jnp.log(s_total))


def own_columns(
    indices: Int[Array, "C k"], columns: int, axes: AxisNames
) -> tuple[Int[Array, "C k"], Bool[Array, "C k"]]:
    """The same places among this device's columns, and which of them are there."""
    own = indices - (jax.lax.axis_index(axes) * columns if axes else 0)
    return jnp.clip(own, 0, columns - 1), (own >= 0) & (own < columns)


def maxima(axes: AxisNames, over: Over, *arrays: Float[Array, "..."]) -> Float[Array, "n C"]:
    """Of each array over some of its axes, and over all devices; one exchange."""
    own = jnp.stack([jnp.max(x, axis=over) for x in arrays])
    return jax.lax.pmax(own, axes) if axes else own


def sums(axes: AxisNames, over: Over, *arrays: Float[Array, "..."]) -> Float[Array, "n C"]:
    """Of each array over some of its axes, and over all devices; one exchange."""
    own = jnp.stack([jnp.sum(x, axis=over) for x in arrays])
    return jax.lax.psum(own, axes) if axes else own
