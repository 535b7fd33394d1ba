"""Other divergences than KL(teacher || student), and any of them with the cross entropies of the same logits.

As in `per_token`, what a softmax needs of other devices' columns is exchanged where the vocabulary is cut.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.linear_loss.per_token import (
    ByToken,
    Values,
    cross_entropy,
    divergence,
    kl_of_logits,
    maxima,
    sums,
)
from pallas_kernels.linear_loss.reference import Heads, Settings, Tokens, logits


def distillation(
    settings: Settings, values: Values, tokens: Tokens, heads: Heads
) -> tuple[Float[Array, "C 3"], Values]:
    """As `linear_distillation`; exchanges what the divergence needs, and two maxima and four sums."""
    assert heads.teacher is not None
    hidden, labels = tokens.targets
    teacher = logits(hidden, heads.teacher)
    loss, d_logits = DIVERGENCES[settings.divergence](settings, values, teacher)
    labelled = tokens._replace(weights=tokens.weights[:, 1], targets=(labels,))
    own, d_own = cross_entropy(settings, values, labelled, heads)
    teachers, _ = cross_entropy(settings, teacher, labelled, heads)
    losses = jnp.stack([loss, own, teachers], axis=-1)
    return losses, tokens.weights[:, :1] * d_logits + d_own


def reverse_kl(settings: Settings, student: Values, teacher: Values) -> tuple[ByToken, Values]:
    """KL(student || teacher) of each token, times r^2, and its gradient by the student's logits.

    Exchanges two maxima and three sums.
    """
    axes, r = settings.axes.vocabulary, settings.temperature
    student, teacher = student / r, teacher / r
    tops = maxima(axes, -1, student, teacher)
    student, teacher = student - tops[0][:, None], teacher - tops[1][:, None]
    s, t, gap = jnp.exp(student), jnp.exp(teacher), student - teacher
    s_total, t_total, gaps = sums(axes, -1, s, t, s * gap)
    mean = gaps / s_total
    d_logits = r * (s / s_total[:, None]) * (gap - mean[:, None])
    return divergence(t_total, s_total, gaps, r), d_logits


def jensen_shannon(settings: Settings, student: Values, teacher: Values) -> tuple[ByToken, Values]:
    """Half of KL(teacher || m) + KL(student || m), m their mean, times r^2, and its gradient by the student's logits.

    Exchanges two maxima, then two sums, then two more.
    """
    axes, r = settings.axes.vocabulary, settings.temperature
    student, teacher = student / r, teacher / r
    tops = maxima(axes, -1, student, teacher)
    student, teacher = student - tops[0][:, None], teacher - tops[1][:, None]
    totals = jnp.log(sums(axes, -1, jnp.exp(student), jnp.exp(teacher)))
    student, teacher = student - totals[0][:, None], teacher - totals[1][:, None]
    # log(s / m) = log 2 - log(1 + t / s), which is exact where the two are close.
    gap = teacher - student
    rest = jnp.log(2.0) - jnp.log1p(jnp.exp(-jnp.abs(gap)))
    above, below = rest - jnp.maximum(gap, 0), rest + jnp.minimum(gap, 0)
    s, t = jnp.exp(student), jnp.exp(teacher)
    own, teachers = sums(axes, -1, s * above, t * below)
    return r**2 * (own + teachers) / 2, r * s * (above - own[:, None]) / 2


DIVERGENCES: Mapping[str, Callable[[Settings, Values, Values], tuple[ByToken, Values]]] = {
    "kl": kl_of_logits,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}
