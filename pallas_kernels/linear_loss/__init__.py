"""Losses of a linear head over a large vocabulary, without the logits of all tokens at once.

Which implementation runs where: "chunked" is plain XLA and runs on CPUs, GPUs and TPUs alike; "tpu"
has Pallas kernels for `linear_kl` and `linear_cross_entropy` of bfloat16 hidden states. None is
"tpu" on a TPU that can run it, else "chunked". Both know how to share the vocabulary between the
devices of a mesh. "reference" is the definition, which holds every logit: for tests.

The kernels compute the sums of the softmax with the logits, and the gradients of the logits with
those of hidden and head, so that logits go through HBM once each way; `docs/benchmarks.md` has the
count. `linear_kl_top_k` has none:
its rest is the sum over all tokens but k of each row, other ones in every row, which would cost a
tile k comparisons per logit.

There is no "gpu": on an H200 `linear_kl` with gradients at 8,192 tokens of width 2,048 and 151,936
tokens takes 40.7 ms, 1.42 times its products alone, which are cuBLAS's. A kernel could hide XLA's
passes over the logits between them, and would lose that again if it multiplied at less than three
quarters of cuBLAS's rate.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import chunked, reference, sharded, tpu
from pallas_kernels.mesh import UNSHARDED, MeshAxes

Implementation = Literal["reference", "chunked", "tpu"]

CROSS_ENTROPY = {
    "reference": reference.cross_entropy,
    "chunked": chunked.cross_entropy,
    "tpu": tpu.cross_entropy,
}
KL = {"reference": reference.kl, "chunked": chunked.kl, "tpu": tpu.kl}
KL_TOP_K = {"reference": reference.kl_top_k, "chunked": chunked.kl_top_k}


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
    op = "linear_cross_entropy"
    run = _choose(op, implementation, CROSS_ENTROPY, mesh_axes, head, hidden)
    hidden = _without_skipped(hidden, weights)
    total, token_losses = run(hidden, head, labels, weights.astype(jnp.float32))
    return total, jax.lax.stop_gradient(token_losses)


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

    Products run in each hidden's dtype; softmax and sums in float32. The gradient of the total is
    formed in the forward pass, chunk of tokens by chunk. The teacher is a constant.

    Args:
      weights: a token of weight 0 is skipped: whatever it holds, its loss and gradients are 0.
      mesh_axes: as in `linear_cross_entropy`; vocabulary shards the rows of both heads, and five
        float32 numbers per token are exchanged.
      implementation: "reference", "chunked" (both anywhere) or "tpu" (fused kernels); None runs the
        kernels on a TPU where they can, else "chunked".
    Returns:
      The total, differentiable in student_hidden, student_head and weights, and the loss of each
      token, which is not.
    Raises:
      UnsupportedError: there is no implementation of that name, or it cannot run these arguments or
        this device, and why; the mesh has no axis of that name; the vocabulary does not divide over
        its axes.
    Source: arXiv 1503.02531 (temperature and its square); arXiv 2410.10989 (gradients in the
    forward pass).
    """
    run = _choose(
        "linear_kl", implementation, KL, mesh_axes, student_head, student_hidden, teacher_hidden
    )
    teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, teacher_head))
    student_hidden, teacher_hidden = (
        _without_skipped(x, weights) for x in (student_hidden, teacher_hidden)
    )
    weights = weights.astype(jnp.float32)
    total, token_losses = run(
        student_hidden, student_head, teacher_hidden, teacher_head, weights, temperature
    )
    return total, jax.lax.stop_gradient(token_losses)


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
    student shares out the rest as the teacher does. The product runs in student_hidden's dtype;
    softmax and sums in float32. The gradient of the total is formed in the forward pass, chunk of
    tokens by chunk. The teacher is a constant.

    Args:
      teacher_log_probs: logarithms of the teacher's probabilities at the same temperature, over the
        whole vocabulary: not normalised over the k. -inf is a probability of 0.
      teacher_indices: tokens they belong to, all different within a row.
      weights: a token of weight 0 is skipped: whatever it holds, its loss and gradients are 0.
      temperature: r.
      mesh_axes: as in `linear_kl`.
      implementation: "reference" or "chunked"; None is "chunked" on every platform.
    Returns:
      The total, differentiable in student_hidden, student_head and weights, and the loss of each
      token, which is not.
    Raises:
      UnsupportedError: there is no implementation of that name, or it is "reference" on sharded arrays;
        the mesh has no axis of that name; the vocabulary does not divide over its axes.
    Source: arXiv 1503.02531 (temperature and its square); arXiv 2410.10989 (gradients in the
    forward pass).
    """
    run = _choose(
        "linear_kl_top_k", implementation, KL_TOP_K, mesh_axes, student_head, student_hidden
    )
    counted = (weights != 0)[:, None]
    log_probs = jnp.where(counted, teacher_log_probs.astype(jnp.float32), -jnp.inf)
    indices = jnp.where(counted, teacher_indices, 0)
    total, token_losses = run(
        _without_skipped(student_hidden, weights),
        student_head,
        jax.lax.stop_gradient(log_probs),
        indices,
        weights.astype(jnp.float32),
        temperature,
    )
    return total, jax.lax.stop_gradient(token_losses)


def _choose(
    op: str,
    implementation: str | None,
    table: dict[str, Callable[..., Any]],
    axes: MeshAxes,
    head: Float[Array, "V D"],
    *hidden: Float[Array, "T _"],
) -> Callable[..., Any]:
    axes = sharded.sharding_axes(op, axes, len(head))
    kernels = "tpu" in table and dispatch.platform() == "tpu"
    preferred = "tpu" if kernels and tpu.unsupported_reason(axes, *hidden) is None else "chunked"
    name = dispatch.choose(op, implementation, table, preferred)
    if axes == UNSHARDED:
        return table[name]
    if name == "reference":
        raise dispatch.unsupported(op, name, f"cannot share its work over {axes}", "'chunked'")
    return functools.partial(table[name], axes=axes)


def _without_skipped(
    hidden: Float[Array, "T D"], weights: Float[Array, "T"]
) -> Float[Array, "T D"]:
    return jnp.where((weights != 0)[:, None], hidden, 0)
