"""The losses on TPU: a loop over chunks of tokens, two Pallas kernels each."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import loop, sharded, tpu_kernels
from pallas_kernels.linear_loss.per_token import own_columns
from pallas_kernels.linear_loss.reference import Heads, Loss, Settings, Tokens
from pallas_kernels.linear_loss.tpu_kernels import LANES
from pallas_kernels.linear_loss.tpu_losses import CrossEntropy, Kl, TileLoss
from pallas_kernels.mesh import UNSHARDED, AxisNames, MeshAxes


def cross_entropy(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_cross_entropy`."""
    return loop.loss(functools.partial(_chunks, CrossEntropy(settings)), settings, tokens, heads)


def kl(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl`."""
    return loop.loss(functools.partial(_chunks, Kl(settings)), settings, tokens, heads)


def unsupported_reason(axes: MeshAxes, tokens: Tokens, heads: Heads) -> str | None:
    """Why the kernels cannot run these arguments here; None where they can."""
    reason = dispatch.platform_unsupported_reason("tpu")
    if reason is not None or dispatch.interprets():
        return reason
    hidden = _hidden_states(tokens, heads)
    others = sorted({str(x.dtype) for x in hidden} - {"bfloat16"})
    if others:
        return f"takes hidden states in bfloat16, not {', '.join(others)}"
    widths = [x.shape[1] for x in hidden]
    if any(width % LANES for width in widths):
        return f"needs widths that are multiples of {LANES}, not {' and '.join(map(str, widths))}"
    # On named axes each device runs the kernels on its own part.
    return dispatch.mesh_unsupported_reason() if axes == UNSHARDED else None


def _chunks(loss: TileLoss, settings: Settings, tokens: Tokens, heads: Heads) -> loop.Chunks:
    hidden, axes = _hidden_states(tokens, heads), settings.axes.vocabulary
    plan = tpu_kernels.plan(loss, len(heads.student), hidden)
    present = (head for head in heads if head is not None)  # each is read in its hidden's type
    matrices = tuple(head.astype(x.dtype) for x, head in zip(hidden, present, strict=True))

    def step(tokens, d_head):
        hidden = _hidden_states(tokens, heads)
        labels = tokens.targets if heads.teacher is None else ()
        own = tuple(_own_labels(x, plan.vocabulary, axes) for x in labels)
        logits, sums = tpu_kernels.scores(plan, hidden, matrices, own, keep=d_head is not None)
        token_loss, lines = loss.join(sums, tokens.weights, labels)
        if d_head is None:
            return token_loss, None, None
        arrays = d_head, hidden[0], matrices[0], logits, lines, own
        d_hidden, d_head = tpu_kernels.gradients(plan, *arrays)
        return token_loss, sharded.summed(d_hidden, axes).astype(tokens.hidden.dtype), d_head

    return loop.Chunks(size=plan.tokens, dealt=False, step=step)


def _hidden_states(tokens: Tokens, heads: Heads) -> tuple[Float[Array, "T _"], ...]:
    """Of the student, then of the teacher if there is one."""
    return (tokens.hidden, *(() if heads.teacher is None else tokens.targets))


def _own_labels(labels: Int[Array, "C"], rows: int, axes: AxisNames) -> Int[Array, "1 C"]:
    """Labels as places among this device's rows; -1 for one that is not there."""
    own, here = own_columns(labels[:, None], rows, axes)
    return jnp.where(here, own, -1).reshape(1, -1)
