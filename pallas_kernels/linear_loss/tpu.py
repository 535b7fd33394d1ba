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
from pallas_kernels.linear_loss.tpu_plan import LANES, Plan
from pallas_kernels.mesh import UNSHARDED, MeshAxes

INSTEAD = "'chunked', or None to let it choose"


def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    labels: Int[Array, "T"],
    weights: Float[Array, "T"],
    axes: MeshAxes = UNSHARDED,
) -> tuple[Float[Array, ""], Float[Array, "T"]]:
    """As `linear_cross_entropy`.

    Raises:
      UnsupportedError: see `tpu_refusal`.
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
      UnsupportedError: see `tpu_refusal`.
    """
    _check("linear_kl", axes, student_hidden, teacher_hidden)
    inputs = student_hidden, student_head, weights
    loops = _loops(Kl(temperature), axes)
    return vjp.loss(loops, axes, inputs, ((teacher_hidden,), ()), (teacher_head,))


def tpu_refusal(axes: MeshAxes, *hidden: Float[Array, "T _"]) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    refusal = dispatch.platform_refusal("tpu")
    if refusal is not None or dispatch.interprets():
        return refusal
    others = sorted({str(x.dtype) for x in hidden} - {"bfloat16"})
    if others:
        return f"takes hidden states in bfloat16, not {', '.join(others)}"
    widths = [x.shape[1] for x in hidden]
    if any(width % LANES for width in widths):
        return f"needs widths that are multiples of {LANES}, not {' and '.join(map(str, widths))}"
    # On named axes each device runs the kernels on its own part.
    return dispatch.mesh_refusal() if axes == UNSHARDED else None


def _check(op: str, axes: MeshAxes, *hidden: Float[Array, "T _"]) -> None:
    refusal = tpu_refusal(axes, *hidden)
    if refusal is not None:
        raise dispatch.unsupported(op, "tpu", refusal, INSTEAD)


def _loops(loss: CrossEntropy | Kl, axes: MeshAxes) -> vjp.Loops:
    return vjp.Loops(
        functools.partial(_numbers, loss, axes), functools.partial(_gradients, loss, axes)
    )


def _numbers(loss: CrossEntropy | Kl, axes: MeshAxes, tokens: Any, rows: Any) -> tuple[Any, None]:
    """The loop without gradients: number of each token, from logits that never leave the chip."""
    plan, heads = _prepared(loss, tokens, rows)

    def chunk(_, tokens):
        hidden, weights, (others, labels) = tokens
        marks = _marks(plan, axes, labels)
        _, numbers = tpu_kernels.scores(plan, (hidden, *others), heads, marks, keep=False)
        number, _ = loss.join(numbers, weights, labels, axes.vocabulary)
        return None, jnp.where(weights != 0, number, 0.0)

    _, numbers = jax.lax.scan(chunk, None, _chunks(plan, tokens))
    return numbers.reshape(-1)[: len(tokens[0])], None


def _gradients(loss: CrossEntropy | Kl, axes: MeshAxes, tokens: Any, rows: Any) -> tuple[Any, Any]:
    """The loop with them: number of each token and gradient toward it, gradient toward each row."""
    plan, heads = _prepared(loss, tokens, rows)

    def chunk(toward_head, tokens):
        hidden, weights, (others, labels) = tokens
        marks = _marks(plan, axes, labels)
        logits, numbers = tpu_kernels.scores(plan, (hidden, *others), heads, marks, keep=True)
        number, lines = loss.join(numbers, weights, labels, axes.vocabulary)
        toward_hidden, toward_head = tpu_kernels.gradients(
            plan, toward_head, hidden, heads[0], logits, lines, marks
        )
        toward_hidden = sharded.summed(toward_hidden, axes.vocabulary).astype(hidden.dtype)
        return toward_head, (jnp.where(weights != 0, number, 0.0), toward_hidden)

    (hidden, _, _), (head, _) = tokens, rows
    zeros = jnp.zeros(head.shape, jnp.float32)
    toward_head, (numbers, toward_hidden) = jax.lax.scan(chunk, zeros, _chunks(plan, tokens))
    toward_head = sharded.summed(toward_head, axes.tokens).astype(head.dtype)
    numbers = numbers.reshape(-1)[: len(hidden)]
    return (numbers, toward_hidden.reshape(-1, head.shape[1])[: len(hidden)]), toward_head


def _prepared(
    loss: CrossEntropy | Kl, tokens: Any, rows: Any
) -> tuple[Plan, tuple[Float[Array, "V _"], ...]]:
    """How to cut the work; the student's and the teacher's heads, each in its hidden's type."""
    (hidden, _, (others, _)), (head, constants) = tokens, rows
    hidden, heads = (hidden, *others), (head, *constants)
    matrices = tuple(head.astype(x.dtype) for x, head in zip(hidden, heads, strict=True))
    return tpu_plan.make(loss, len(head), hidden), matrices


def _marks(
    plan: Plan, axes: MeshAxes, labels: tuple[Int[Array, "C"], ...]
) -> tuple[Int[Array, "1 C"], ...]:
    """Labels as places among this device's rows; -1 for one that is not there."""
    found = (own_columns(x[:, None], plan.vocabulary, axes.vocabulary) for x in labels)
    return tuple(jnp.where(here, own, -1).reshape(1, -1) for own, here in found)


def _chunks(plan: Plan, tokens: Any) -> Any:
    """Every array of tokens cut into chunks, the last one padded (weight 0)."""
    count = -(-len(tokens[0]) // plan.tokens)

    def cut(x):
        x = sharded.padded(x, plan.tokens * count)
        return x.reshape(count, plan.tokens, *x.shape[1:])

    return jax.tree.map(cut, tokens)
