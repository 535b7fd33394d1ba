"""Perplexity by context length on the same final tokens, and the plain held-out numbers at the training length."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.predictions import final_losses, top_tokens
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, Z, failure
from hypenet_jax.generation.batching import TOKENS_PER_BATCH
from hypenet_jax.generation.model import Model
from hypenet_jax.losses import Mean, distillation, next_token, real_tokens
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import constrain

NUM_TARGETS = 64


PRESENTATIONS = (
    Presentation(
        metric="perplexity",
        title="Using a longer context",
        note="Perplexity of the same final tokens of held-out text, with more or less context before them. Lower is "
        "better; the targets are the same at every length and for every model. Whiskers are 95\u00a0% intervals over "
        "windows of text.",
        label="perplexity",
    ),
    Presentation(
        metric="perplexity_by_position",
        title="Along the context",
        note="Perplexity of the tokens whose position lies below the number and at or above half of it, in windows of "
        "one length: how much the model makes of the context so far. Whiskers are 95\u00a0% intervals over windows.",
        label="perplexity",
    ),
    Presentation(
        metric="perplexity_sliding",
        title="Sliding over the text",
        note="Perplexity of every token but the first ones, in windows of one length that move on by the stride: each "
        "token is predicted once, from at least the length less the stride.",
        kind="table",
    ),
)


def perplexity_by_length(
    subject: EvalModel,
    text: Int[np.ndarray, " n"],
    lengths: Sequence[int],
    *,
    num_windows: int,
    num_targets: int = NUM_TARGETS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """exp of the mean cross entropy of the same `num_targets` final tokens of each window, at every context length.

    At length T a target has T - num_targets tokens before the first target as context, so numbers compare along a row:
    only the context changes, never what is predicted.

    Args:
      text: held-out tokens; the windows end at places spread evenly over it.
      lengths: tokens per window, targets included.
    Returns:
      Rows "perplexity"; count is the number of targets; the interval of 95 % is that of a mean over windows.
    Raises:
      ValueError: the text is too short for the windows, or a length has no room for a context.
    """
    ends = window_ends(len(text), lengths, num_windows, num_targets)
    rows = []
    for length in lengths:
        windows = np.stack([text[end - length : end] for end in ends]).astype(np.int32)
        losses = final_losses(subject, windows, num_targets, tokens_per_batch)
        rows += _perplexity("perplexity", subject, losses, length)
    return Report(tuple(rows))


def perplexity_by_position(
    subject: EvalModel,
    text: Int[np.ndarray, " n"],
    length: int,
    *,
    num_windows: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """exp of the mean cross entropy of the tokens at positions 1, 2 .. 3, 4 .. 7, ..., each of windows of `length`.

    Args:
      text: held-out tokens; the windows begin at places spread evenly over it.
    Returns:
      Rows "perplexity_by_position", whose length is that of the context: the end of the positions.
    Raises:
      ValueError: the text is shorter than a window.
    """
    ends = window_ends(len(text), [length], num_windows, 1)
    windows = np.stack([text[end - length : end] for end in ends]).astype(np.int32)
    losses = final_losses(subject, windows, length - 1, tokens_per_batch)
    rows, start = [], 1
    while start < length:
        stop = min(2 * start, length)
        part = losses[:, start - 1 : stop - 1]
        rows += _perplexity("perplexity_by_position", subject, part, stop)
        start = stop
    return Report(tuple(rows))


def perplexity_of_text(
    subject: EvalModel,
    text: Int[np.ndarray, " n"],
    length: int,
    *,
    stride: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """exp of the mean cross entropy of every token of a text but the first ones, each counted once.

    Windows of `length` tokens move on by `stride`, and the last `stride` of each count: every token has a context of
    length - stride to length - 1 tokens (the usual sliding window); stride = length - 1 cuts the text into wholes.
    Tokens at the end that fill no window are left out.

    Returns:
      One row "perplexity_sliding"; its label is the stride.
    Raises:
      ValueError: a stride that leaves no context, or a text shorter than a window.
    """
    if not 1 <= stride < length:
        raise ValueError(
            f"stride {stride} leaves no context in windows of {length} tokens; use 1 to {length - 1}"
        )
    if len(text) < length:
        raise ValueError(f"{len(text)} tokens of text do not fill a window of {length}; give more")
    # A view: windows overlap, and copies of all of them would be many times the text.
    windows = np.lib.stride_tricks.sliding_window_view(text.astype(np.int32), length)[::stride]
    losses = final_losses(subject, windows, stride, tokens_per_batch)
    rows = _perplexity("perplexity_sliding", subject, losses, length)
    return Report(tuple(dataclasses.replace(row, label=f"stride {stride}") for row in rows))


def _perplexity(
    metric: str, subject: EvalModel, losses: Float[np.ndarray, "R W"], length: int
) -> list[Row]:
    """The row of exp(mean) with the interval of a mean over windows; windows whose losses are not finite stand in a
    row of their own and do not count."""
    finite = np.isfinite(losses).all(axis=1)
    rows = []
    if not finite.all():
        where = np.flatnonzero(~finite).tolist()
        why = f"the model computes NaN or infinite losses in windows {where} of {len(losses)}"
        rows.append(failure(subject.name, metric, why, length, len(where)))
    if finite.any():
        means = losses[finite].mean(axis=1)
        error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
        mean, count = float(means.mean()), losses[finite].size
        ends = _exp(mean - Z * error), _exp(mean + Z * error)
        rows.append(Row(metric, subject.name, _exp(mean), count, length, *ends))
    return rows


def window_ends(
    text_length: int, lengths: Sequence[int], num_windows: int, num_targets: int
) -> Int[np.ndarray, " W"]:
    """Where the windows end: the same for all lengths, evenly spread, their targets apart from each other."""
    if min(lengths) <= num_targets:
        raise ValueError(
            f"length {min(lengths)} leaves no context before {num_targets} targets; use at least {num_targets + 1}"
        )
    needed = max(lengths) + (num_windows - 1) * num_targets
    if text_length < needed:
        raise ValueError(
            f"{num_windows} windows of {max(lengths)} tokens need {needed} tokens of text, there are {text_length}; "
            "give more text, fewer windows or a shorter longest length"
        )
    return np.linspace(max(lengths), text_length, num_windows).astype(np.int64)


def held_out(
    subject: EvalModel, batches: Iterable[Batch], teacher: EvalModel | None = None
) -> Report:
    """How well held-out text is predicted, and how far the model is from its teacher.

    Args:
      batches: rows of one length; each token counts as its `loss_weight` says.
      teacher: compared with where given.
    Returns:
      Rows "cross_entropy" (nats), "perplexity" (its exp), "top1" (share of tokens that were the likeliest) and, with a
      teacher, "kl": KL(teacher || subject) in nats over all real tokens. The count is that of predicted tokens.
    """
    sums: dict[str, np.ndarray] = {}
    length = count = 0
    for batch in batches:
        length = batch.tokens.shape[1]
        count += int(np.count_nonzero(np.asarray(batch.loss_weight)))
        means = _held_out(
            subject.decoder,
            subject.params,
            None if teacher is None else teacher.decoder,
            None if teacher is None else teacher.params,
            batch,
        )
        for name, mean in means.items():
            pair = np.asarray([mean.total, mean.weight], np.float64)
            sums[name] = sums[name] + pair if name in sums else pair
    if not count:
        raise ValueError(f"no token to predict in the held-out text of {subject.name}; give more")
    values = {name: float(total / weight) for name, (total, weight) in sums.items()}
    values["perplexity"] = _exp(values["cross_entropy"])
    return Report(
        tuple(Row(name, subject.name, value, count, length) for name, value in values.items())
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _held_out(
    decoder: Model,
    params: Params,
    teacher: Model | None,
    teacher_params: Params | None,
    batch: Batch,
) -> dict[str, Mean]:
    tokens = constrain(batch.tokens, (axes.BATCH, axes.TIME))
    placed = (tokens, batch.positions, batch.segment_ids)
    hidden = decoder.apply({"params": params}, *placed).hidden
    head = output_head(params, decoder.config)
    hit = (top_tokens(decoder, params, hidden[:, :-1]) == tokens[:, 1:]).astype(jnp.float32)
    weights = batch.loss_weight[:, 1:]
    means = {
        "cross_entropy": next_token(hidden, head, tokens, batch.loss_weight),
        "top1": Mean(jnp.sum(hit * weights), jnp.sum(weights)),
    }
    if teacher is not None and teacher_params is not None:
        target = teacher.apply({"params": teacher_params}, *placed).hidden
        target_head = output_head(teacher_params, teacher.config)
        real = real_tokens(batch.segment_ids)
        means["kl"] = distillation(hidden, head, target, target_head, real, temperature=1.0)
    return jax.tree.map(lambda x: constrain(x, ()), means)


def _exp(nats: float) -> float:
    """exp, and infinity where a diverged model would overflow it."""
    return math.exp(nats) if nats < 700 else math.inf
