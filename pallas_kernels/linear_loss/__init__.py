"""Losses of a linear head over a large vocabulary, without the logits of all tokens at once.

"chunked" is plain XLA. "tpu" has Pallas kernels that compute the sums of the softmax with the logits,
and the gradients of the logits with those of hidden and head, so that logits go through HBM once each
way; `docs/benchmarks.md` has the count. `linear_kl_top_k` has none: its rest is the sum over all
tokens but k of each row, other ones in every row, which would cost a tile k comparisons per logit.
`linear_distillation` has none either: its Jensen-Shannon divergence needs the sums of both softmaxes
before its own.

There is no "gpu": on an H200 `linear_kl` with gradients at 8,192 tokens of width 2,048 and 151,936
tokens takes 40.7 ms, 1.42 times its products alone, which are cuBLAS's. A kernel could hide XLA's
passes over the logits between them, and would lose that again if it multiplied at less than three
quarters of cuBLAS's rate.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import chunked, reference, sharded, tpu
from pallas_kernels.linear_loss.reference import (
    Divergence,
    Heads,
    Loss,
    Settings,
    Tokens,
    of_counted,
)
from pallas_kernels.mesh import UNSHARDED, MeshAxes

Implementation = Literal["reference", "chunked", "tpu"]
Table = Mapping[str, Callable[[Settings, Tokens, Heads], Loss]]

CROSS_ENTROPY = {
    "reference": reference.cross_entropy,
    "chunked": chunked.cross_entropy,
    "tpu": tpu.cross_entropy,
}
KL = {"reference": reference.kl, "chunked": chunked.kl, "tpu": tpu.kl}
KL_TOP_K = {"reference": reference.kl_top_k, "chunked": chunked.kl_top_k}
DISTILLATION = {"reference": reference.distillation, "chunked": chunked.distillation}


def linear_cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
    *,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """Cross entropy of the logits hidden @ head^T.

    loss_t = log sum_v exp(logit_tv) - logit_t,label ;  total = sum_t weights_t * loss_t

    The product runs in hidden's dtype; softmax and sums in float32. The gradient of the total is
    formed in the forward pass, chunk of tokens by chunk, so it costs one product with the head less
    than computing the logits again.

    Args:
      weights: a token of weight 0 is skipped: whatever it holds, its loss and gradients are 0.
      mesh_axes: vocabulary, which shards the head's rows; batch and sequence, which together shard
        the tokens. Each device computes the logits of its own rows; along the vocabulary three
        float32 numbers per token are exchanged and the gradient of hidden is summed, along the
        tokens the gradient of head is summed once.
      implementation: "reference", "chunked" (both anywhere) or "tpu" (fused kernels); None runs the
        kernels on a TPU where they can, else "chunked".
    Returns:
      The total, differentiable in hidden, head and weights, and the loss of each token, which is
      not.
    Raises:
      UnsupportedError: there is no implementation of that name, or it cannot run these arguments or
        this device, and why; the mesh has no axis of that name; the vocabulary does not divide over
        its axes.
    Source: arXiv 2410.10989 (gradients in the forward pass).
    """
    settings = Settings(len(head), axes=mesh_axes)
    tokens = Tokens(hidden, weights, (labels,))
    return _run(
        "linear_cross_entropy", CROSS_ENTROPY, implementation, settings, tokens, Heads(head)
    )


def linear_kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    *,
    temperature: float = 1.0,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """KL(teacher || student) of the two heads' softmaxes, temperature r.

    p, s = softmax(teacher's, student's logits / r)
    loss_t = r^2 * sum_v p_tv (log p_tv - log s_tv) ;  total = sum_t weights_t * loss_t

    Precision, gradients, arguments, results and errors as `linear_cross_entropy`. The teacher is a
    constant; over a sharded vocabulary, which is that of both heads, five float32 numbers per token
    are exchanged.
    Source: arXiv 1503.02531 (temperature and its square).
    """
    settings = Settings(len(student_head), temperature, mesh_axes)
    tokens = Tokens(student_hidden, weights, (of_counted(teacher_hidden, weights),))
    heads = Heads(student_head, teacher_head)
    return _run("linear_kl", KL, implementation, settings, tokens, heads)


def linear_kl_top_k(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_log_probs: Float[Array, "T k"],
    teacher_indices: Int[Array, "T k"],
    weights: Float[Array, "T"],
    *,
    temperature: float = 1.0,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """KL(teacher || student) over k + 1 buckets: the teacher's k likeliest tokens, and all others.

    s = softmax(student's logits / r) ;  p_ti = exp(teacher_log_probs_ti) for the k of i
    tail_t = 1 - sum_i p_ti ;  rest_t = sum of s_tv over every v that is not one of the k
    loss_t = r^2 * (sum_i p_ti (log p_ti - log s_ti) + tail_t (log tail_t - log rest_t))
    total = sum_t weights_t * loss_t

    It is at most `linear_kl` of the same teacher, and equal to it where k is the vocabulary or the
    student shares out the rest as the teacher does. Otherwise as `linear_kl`.

    Args:
      teacher_log_probs: logarithms of the teacher's probabilities at the same temperature, over the
        whole vocabulary: not normalised over the k. -inf is a probability of 0.
      teacher_indices: tokens they belong to, all different within a row.
      implementation: "reference" or "chunked"; None is "chunked" on every platform.
    Source: arXiv 1503.02531 (temperature and its square).
    """
    settings = Settings(len(student_head), temperature, mesh_axes)
    log_probs = of_counted(teacher_log_probs.astype(jnp.float32), weights, -jnp.inf)
    targets = log_probs, of_counted(teacher_indices, weights)
    tokens = Tokens(student_hidden, weights, targets)
    return _run("linear_kl_top_k", KL_TOP_K, implementation, settings, tokens, Heads(student_head))


def linear_distillation(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T 2"],
    *,
    divergence: Divergence = "kl",
    temperature: float = 1.0,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, ""], Float[Array, "T 3"]]:
    """A divergence of the student from its teacher and its cross entropy, from one product with each head.

    p, s = softmax(teacher's, student's logits / r) ;  m = (p + s) / 2 ;  KL(a || b) = sum_v a_v log(a_v / b_v)
    D = KL(p || s), "kl" ;  KL(s || p), "reverse_kl" ;  (KL(p || m) + KL(s || m)) / 2, "jensen_shannon"
    losses_t = (r^2 D, cross entropy of the student, that of the teacher), both without temperature
    total = sum_t weights_t1 losses_t1 + weights_t2 losses_t2

    Otherwise as `linear_kl`; over a sharded vocabulary at most twelve float32 numbers per token are exchanged.

    Args:
      labels: the tokens whose cross entropies are taken.
      weights: of divergence and cross entropy; a token with two weights of 0 is skipped.
      implementation: "reference" or "chunked"; None is "chunked" on every platform.
    Returns:
      The total, and all three losses of each token whatever their weights.
    Source: arXiv 1503.02531; the other divergences: arXiv 2306.13649.
    """
    settings = Settings(len(student_head), temperature, mesh_axes, divergence)
    if divergence not in reference.DIVERGENCES:
        known = ", ".join(reference.DIVERGENCES)
        raise ValueError(f"linear_distillation: no divergence {divergence!r}; there are {known}")
    targets = of_counted(teacher_hidden, weights), labels
    tokens = Tokens(student_hidden, jnp.pad(weights, ((0, 0), (0, 1))), targets)
    heads = Heads(student_head, teacher_head)
    return _run("linear_distillation", DISTILLATION, implementation, settings, tokens, heads)


def _run(
    op: str,
    table: Table,
    implementation: str | None,
    settings: Settings,
    tokens: Tokens,
    heads: Heads,
) -> Loss:
    """The loss by one implementation of a table; targets and the teacher's head are constants."""
    axes = sharded.sharding_axes(op, settings.axes, settings.vocabulary)
    reason = tpu.unsupported_reason(axes, tokens, heads)
    kernels = "tpu" in table and dispatch.platform() == "tpu" and reason is None
    name = dispatch.choose(op, implementation, table, "tpu" if kernels else "chunked")
    if name == "tpu":
        dispatch.require(op, name, reason, "chunked")
    if name == "reference" and axes != UNSHARDED:
        raise dispatch.unsupported(op, name, f"cannot share its work over {axes}", "'chunked'")
    targets, teacher = jax.lax.stop_gradient((tokens.targets, heads.teacher))
    hidden, weights = of_counted(tokens.hidden, tokens.weights), tokens.weights
    tokens = Tokens(hidden, weights.astype(jnp.float32), targets)
    total, token_losses = table[name](
        settings._replace(axes=axes), tokens, Heads(heads[0], teacher)
    )
    return total, jax.lax.stop_gradient(token_losses)
