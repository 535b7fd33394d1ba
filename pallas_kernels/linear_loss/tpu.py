"""The losses on TPU: a loop over chunks of tokens, two Pallas kernels each, under these ops'
contracts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import sharded, tpu_kernels, tpu_plan, vjp
from pallas_kernels.linear_loss.per_token import own_columns
from pallas_kernels.linear_loss.tpu_losses import CrossEntropy, Kl
from pallas_kernels.linear_loss.tpu_plan import LANES, TpuPlan
from pallas_kernels.mesh import UNSHARDED, MeshAxes


def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_cross_entropy`.

    Raises:
      UnsupportedError: see `unsupported_reason`.
    """
    _check("linear_cross_entropy", axes, hidden)
    loops = _loops(CrossEntropy(len(head)), axes)
    return vjp.loss(loops, axes, (hidden, head, weights), ((), (labels,)), ())


def kl(
    student_hidden: Float[Array, "T D"],
    student_head: Float[Array, "V D"],
    teacher_hidden: Float[Array, "T E"],
    teacher_head: Float[Array, "V E"],
    weights: Float[Array, "T"],
    temperature: float,
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_kl`.

    Raises:
      UnsupportedError: see `unsupported_reason`.
    """
    _check("linear_kl", axes, student_hidden, teacher_hidden)
    inputs = student_hidden, student_head, weights
    loops = _loops(Kl(temperature), axes)
    return vjp.loss(loops, axes, inputs, ((teacher_hidden,), ()), (teacher_head,))


def unsupported_reason(axes: MeshAxes, *hidden: Float[Array, "T _"]) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    reason = dispatch.platform_unsupported_reason("tpu")
    if reason is not None or dispatch.interprets():
        return reason
    others = sorted({str(x.dtype) for x in hidden} - {"bfloat16"})
    if others:
        return f"takes hidden states in bfloat16, not {', '.join(others)}"
    widths = [x.shape[1] for x in hidden]
    if any(width % LANES for width in widths):
        return f"needs widths that are multiples of {LANES}, not {' and '.join(map(str, widths))}"
    # On named axes each device runs the kernels on its own part.
    return dispatch.mesh_unsupported_reason() if axes == UNSHARDED else None


def _check(op: str, axes: MeshAxes, *hidden: Float[Array, "T _"]) -> None:
    dispatch.require(op, "tpu", unsupported_reason(axes, *hidden), "chunked")


def _loops(loss: CrossEntropy | Kl, axes: MeshAxes) -> vjp.Loops:
    return vjp.Loops(
        functools.partial(_token_losses, loss, axes), functools.partial(_gradients, loss, axes)
    )


def _token_losses(
    loss: CrossEntropy | Kl, axes: MeshAxes, tokens: Any, rows: Any
) -> tuple[Any, None]:
    """The loop without gradients: loss of each token, from logits that never leave the chip."""
    plan, heads = _prepared(loss, tokens, rows)

    def chunk(_, tokens):
        hidden, weights, (others, labels) = tokens
        own_labels = _own_labels(plan, axes, labels)
        _, sums = tpu_kernels.scores(plan, (hidden, *others), heads, own_labels, keep=False)
        token_loss, _ = loss.join(sums, weights, labels, axes.vocabulary)
        return None, jnp.where(weights != 0, token_loss, 0.0)

    _, token_losses = jax.lax.scan(chunk, None, _chunks(plan, tokens))
    return token_losses.reshape(-1)[: len(tokens[0])], None


def _gradients(loss: CrossEntropy | Kl, axes: MeshAxes, tokens: Any, rows: Any) -> tuple[Any, Any]:
    """The loop with them: loss of each token and gradient of its hidden state, gradient of each row."""
    plan, heads = _prepared(loss, tokens, rows)

    def chunk(d_head, tokens):
        hidden, weights, (others, labels) = tokens
        own_labels = _own_labels(plan, axes, labels)
        logits, sums = tpu_kernels.scores(plan, (hidden, *others), heads, own_labels, keep=True)
        token_loss, lines = loss.join(sums, weights, labels, axes.vocabulary)
        d_hidden, d_head = tpu_kernels.gradients(
            plan, d_head, hidden, heads[0], logits, lines, own_labels
        )
        d_hidden = sharded.summed(d_hidden, axes.vocabulary).astype(hidden.dtype)
        return d_head, (jnp.where(weights != 0, token_loss, 0.0), d_hidden)

    (hidden, _, _), (head, _) = tokens, rows
    zeros = jnp.zeros(head.shape, jnp.float32)
    d_head, (token_losses, d_hidden) = jax.lax.scan(chunk, zeros, _chunks(plan, tokens))
    d_head = sharded.summed(d_head, axes.tokens).astype(head.dtype)
    token_losses = token_losses.reshape(-1)[: len(hidden)]
    return (token_losses, d_hidden.reshape(-1, head.shape[1])[: len(hidden)]), d_head


def _prepared(
    loss: CrossEntropy | Kl, tokens: Any, rows: Any
) -> tuple[TpuPlan, tuple[Float[Array, "V _"], ...]]:
    """How to cut the work; the student's and the teacher's heads, each in its hidden's type."""
    (hidden, _, (others, _)), (head, constants) = tokens, rows
    hidden, heads = (hidden, *others), (head, *constants)
    matrices = tuple(head.astype(x.dtype) for x, head in zip(hidden, heads, strict=True))
    return tpu_plan.make(loss, len(head), hidden), matrices


def _own_labels(
    plan: TpuPlan, axes: MeshAxes, labels: tuple[Int[Array, "C"], ...]
) -> tuple[Int[Array, "1 C"], ...]:
    """Labels as places among this device's rows; -1 for one that is not there."""
    found = (own_columns(x[:, None], plan.vocabulary, axes.vocabulary) for x in labels)
    return tuple(jnp.where(here, own, -1).reshape(1, -1) for own, here in found)


def _chunks(plan: TpuPlan, tokens: Any) -> Any:
    """Every array of tokens cut into chunks, the last one padded (weight 0)."""
    count = -(-len(tokens[0]) // plan.tokens)

    def cut(x):
        x = sharded.padded(x, plan.tokens * count)
        return x.reshape(count, plan.tokens, *x.shape[1:])

    return jax.tree.map(cut, tokens)
