"""Losses of a linear head over a large vocabulary, without the logits of all tokens at once."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import chunked, reference

Implementation = Literal["reference", "chunked"]

CROSS_ENTROPY = {"reference": reference.cross_entropy, "chunked": chunked.cross_entropy}
KL = {"reference": reference.kl, "chunked": chunked.kl}


def linear_cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """Cross entropy of the logits hidden @ head^T.

    number_t = log sum_v exp(logit_tv) - logit_t,label ;  total = sum_t weights_t * number_t

    The product runs in hidden's dtype; softmax and sums in float32. The gradient of the total is
    formed in the forward
    pass, chunk of tokens by chunk, so it costs one product with the head less than computing the
    logits again.

    Args:
      weights: a token of weight 0 is skipped: whatever it holds, its number and gradients are 0.
      implementation: "reference" or "chunked"; None is "chunked".
    Returns:
      The total, differentiable in hidden, head and weights, and the number of each token, which is
      not.
    Raises:
      UnsupportedError: there is no implementation of that name.
    Source: arXiv 2410.10989 (gradients in the forward pass).
    """
    name = dispatch.choose("linear_cross_entropy", implementation, CROSS_ENTROPY, "chunked")
    hidden = _without_skipped(hidden, weights)
    total, numbers = CROSS_ENTROPY[name](hidden, head, labels, weights.astype(jnp.float32))
    return total, jax.lax.stop_gradient(numbers)


def linear_kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    *,
    temperature: float = 1.0,
    implementation: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """KL(teacher || student) of the two heads' softmaxes, temperature r.

    number_t = r^2 * sum_v p_tv (log p_tv - log s_tv) ;  p, s = softmax(teacher's, student's logits
    / r)
    total = sum_t weights_t * number_t

    Products run in each hidden's dtype; softmax and sums in float32. The gradient of the total is
    formed in the forward
    pass, chunk of tokens by chunk. The teacher is a constant.

    Args:
      weights: a token of weight 0 is skipped: whatever it holds, its number and gradients are 0.
      implementation: "reference" or "chunked"; None is "chunked".
    Returns:
      The total, differentiable in student_hidden, student_head and weights, and the number of each
      token, which is not.
    Raises:
      UnsupportedError: there is no implementation of that name.
    Source: arXiv 1503.02531 (temperature and its square); arXiv 2410.10989 (gradients in the
    forward pass).
    """
    name = dispatch.choose("linear_kl", implementation, KL, "chunked")
    teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, teacher_head))
    student_hidden, teacher_hidden = (
        _without_skipped(x, weights) for x in (student_hidden, teacher_hidden)
    )
    weights = weights.astype(jnp.float32)
    total, numbers = KL[name](
        student_hidden, student_head, teacher_hidden, teacher_head, weights, temperature
    )
    return total, jax.lax.stop_gradient(numbers)


def _without_skipped(
    hidden: Float[Array, "T D"], weights: Float[Array, "T"]
) -> Float[Array, "T D"]:
    return jnp.where((weights != 0)[:, None], hidden, 0)
