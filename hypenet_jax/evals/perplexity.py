"""Perplexity by context length on the same final tokens, and the plain held-out numbers at the training length."""

import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params, Tokens
from hypenet_jax.data.batch import Batch
from hypenet_jax.evals.report import Report, Row, Z
from hypenet_jax.evals.subject import TOKENS_PER_BATCH, Model, Subject, batches_of
from hypenet_jax.losses import Mean, distillation, next_token, real_tokens
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import constrain
from pallas_kernels import linear_cross_entropy

NUM_TARGETS = 64

# Logits of this many tokens at once, where only the largest is wanted.
BLOCK = 256


def perplexity_by_length(
    subject: Subject,
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
        losses = final_losses(subject, windows, num_targets, tokens_per_batch).mean(axis=1)
        mean = float(losses.mean())
        error = float(losses.std(ddof=1)) / math.sqrt(num_windows) if num_windows > 1 else math.inf
        low, high = (_exp(mean + sign * Z * error) for sign in (-1, 1))
        count = num_windows * num_targets
        rows.append(Row("perplexity", subject.name, _exp(mean), count, length, low, high))
    return Report(tuple(rows))


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


def final_losses(
    subject: Subject,
    rows: Int[np.ndarray, "R T"],
    num_targets: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[np.ndarray, "R W"]:
    """-log p of the last `num_targets` tokens of each row, in nats, float64; no other logits are formed."""
    parts = [
        np.asarray(_final_losses(subject.decoder, subject.params, batch, num_targets))[:real]
        for batch, real in batches_of(rows, tokens_per_batch)
    ]
    return np.concatenate(parts).astype(np.float64)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _final_losses(
    decoder: Model, params: Params, tokens: Tokens, num_targets: int
) -> Float[Array, "B W"]:
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    hidden = decoder.apply({"params": params}, tokens).hidden[:, -num_targets - 1 : -1]
    labels = tokens[:, -num_targets:].reshape(-1)
    head = output_head(params, decoder.config)
    weights = jnp.ones(labels.shape, jnp.float32)
    _, losses = linear_cross_entropy(hidden.reshape(-1, hidden.shape[-1]), head, labels, weights)
    return constrain(losses.reshape(-1, num_targets), (None, None))


def held_out(subject: Subject, batches: Iterable[Batch], teacher: Subject | None = None) -> Report:
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


def top_tokens(decoder: Model, params: Params, hidden: Hidden) -> Tokens:
    """The likeliest next token after each position; logits exist for a block of tokens at a time."""
    batch, time, width = hidden.shape
    flat = hidden.reshape(-1, width)
    size = min(BLOCK, batch * time)
    blocks = jnp.pad(flat, ((0, -len(flat) % size), (0, 0))).reshape(-1, 1, size, width)

    def best(block):
        logits = decoder.apply({"params": params}, block, method="logits")
        return jnp.argmax(logits[0], axis=-1).astype(jnp.int32)

    return jax.lax.map(best, blocks).reshape(-1)[: batch * time].reshape(batch, time)


def _exp(nats: float) -> float:
    """exp, and infinity where a diverged model would overflow it."""
    return math.exp(nats) if nats < 700 else math.inf
