"""Perplexity by context length on the same final tokens, by position, and of a sliding window."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.predictions import final_losses
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, Z, failure


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityEvaluator(Evaluator):
    """Perplexities of the text.

    Attributes:
      lengths: context lengths of the perplexity of the same final targets, in ascending order.
      windows, targets: how many windows, and how many final tokens of each count.
      position_length: length of the windows whose perplexity is told by position, in doubling buckets; None: not.
      sliding_length, stride: window and step of the sliding perplexity; None: not.
    """

    lengths: tuple[int, ...] = ()
    windows: int = 16
    targets: int = 64
    position_length: int | None = None
    sliding_length: int | None = None
    stride: int = 512

    shown: ClassVar = (
        Presentation(
            metric="perplexity",
            title="Using a longer context",
            note="Perplexity of the same final tokens of held-out text, with more or less context before them. "
            "Lower is better; the targets are the same at every length and for every model. Whiskers are "
            "95\u00a0% intervals over windows of text.",
            label="perplexity",
        ),
        Presentation(
            metric="perplexity_by_position",
            title="Along the context",
            note="Perplexity of the tokens whose position lies below the number and at or above half of it, in "
            "windows of one length: how much the model makes of the context so far. Whiskers are 95\u00a0% intervals "
            "over windows.",
            label="perplexity",
        ),
        Presentation(
            metric="perplexity_sliding",
            title="Sliding over the text",
            note="Perplexity of every token but the first ones, in windows of one length that move on by the "
            "stride: each token is predicted once, from at least the length less the stride.",
            kind="table",
        ),
    )

    def __post_init__(self) -> None:
        numbers = ("windows", "targets", "position_length", "sliding_length", "stride")
        check_positive(self, "lengths", *numbers)

    @property
    def active(self) -> bool:
        return bool(self.lengths or self.position_length or self.sliding_length)

    def check(self, models: Sequence[ModelSource]) -> None:
        """Perplexities compare where they are of the same tokens."""
        words = {m.label: load_tokenizer(m.folder).backend.get_vocab() for m in models}
        first, *others = words
        different = [label for label in others if words[label] != words[first]]
        if different:
            raise ValueError(
                f"{different} have another vocabulary than {first!r}: their perplexities would be of different "
                "tokens; measure them apart, or name the models of each measurement"
            )

    def run(self, model: EvalModel, session: Session) -> Report:
        # Targets are the same for all lengths that the text can fill; each of the others fails by itself.
        spare = len(model.text) - (self.windows - 1) * self.targets
        fitting = tuple(length for length in self.lengths if length <= spare)
        longer = ((length,) for length in self.lengths if length > spare)
        report = Report()
        for lengths in filter(None, (fitting, *longer)):
            counts = {"num_windows": self.windows, "num_targets": self.targets}
            measure = functools.partial(perplexity_by_length, model, lengths, **counts)
            report += session.keep("perplexity", measure, max(lengths))
        if (length := self.position_length) is not None:
            measure = functools.partial(perplexity_by_position, model, length, self.windows)
            report += session.keep("perplexity_by_position", measure, length)
        if (length := self.sliding_length) is not None:
            measure = functools.partial(perplexity_of_text, model, length, self.stride)
            report += session.keep("perplexity_sliding", measure, length)
        return report


def perplexity_by_length(
    model: EvalModel, lengths: Sequence[int], *, num_windows: int, num_targets: int = 64
) -> Report:
    """exp of the mean cross entropy of the same `num_targets` final tokens of each window, at every context length.

    At length T a target has T - num_targets tokens before the first target as context, so numbers compare along a row:
    only the context changes, never what is predicted. The windows end at places spread evenly over the model's text.

    Args:
      lengths: tokens per window, targets included.
    Returns:
      Rows "perplexity"; count is the number of targets; the interval of 95 % is that of a mean over windows.
    Raises:
      ValueError: the text is too short for the windows, or a length has no room for a context.
    """
    ends, rows = window_ends(len(model.text), lengths, num_windows, num_targets), []
    for length in lengths:
        losses = final_losses(model, _windows(model.text, ends, length), num_targets)
        rows += _perplexity("perplexity", model, losses, length)
    return Report(tuple(rows))


def perplexity_by_position(model: EvalModel, length: int, num_windows: int) -> Report:
    """exp of the mean cross entropy of the tokens at positions 1, 2 .. 3, 4 .. 7, ..., each of windows of `length`.

    Returns:
      Rows "perplexity_by_position", whose length is that of the context: the end of the positions.
    Raises:
      ValueError: the text is shorter than a window.
    """
    ends, rows = window_ends(len(model.text), [length], num_windows, 1), []
    losses = final_losses(model, _windows(model.text, ends, length), length - 1)
    edges = [2**i for i in range((length - 1).bit_length())]
    for start, stop in itertools.pairwise([*edges, length]):
        part = losses[:, start - 1 : stop - 1]
        rows += _perplexity("perplexity_by_position", model, part, stop)
    return Report(tuple(rows))


def perplexity_of_text(model: EvalModel, length: int, stride: int) -> Report:
    """exp of the mean cross entropy of every token of the model's text but the first ones, each counted once.

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
    if len(model.text) < length:
        raise ValueError(
            f"{len(model.text)} tokens of text do not fill a window of {length}; give more"
        )
    # A view: windows overlap, and copies of all of them would be many times the text.
    text = model.text.astype(np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(text, length)[::stride]
    losses = final_losses(model, windows, stride)
    rows = _perplexity("perplexity_sliding", model, losses, length)
    return Report(tuple(dataclasses.replace(row, label=f"stride {stride}") for row in rows))


def _windows(
    text: Int[np.ndarray, " n"], ends: Int[np.ndarray, " W"], length: int
) -> Int[np.ndarray, "W T"]:
    return np.stack([text[end - length : end] for end in ends]).astype(np.int32)


def _perplexity(
    metric: str, model: EvalModel, losses: Float[np.ndarray, "R W"], length: int
) -> list[Row]:
    """The row of exp(mean) with the interval of a mean over windows; windows whose losses are not finite stand in a
    row of their own and do not count."""
    finite = np.isfinite(losses).all(axis=1)
    rows = []
    if not finite.all():
        where = np.flatnonzero(~finite).tolist()
        why = f"the model computes NaN or infinite losses in windows {where} of {len(losses)}"
        rows.append(failure(model.name, metric, why, length, len(where)))
    if finite.any():
        means = losses[finite].mean(axis=1)
        error = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf
        mean, count = float(means.mean()), losses[finite].size
        ends = exp(mean - Z * error), exp(mean + Z * error)
        rows.append(Row(metric, model.name, exp(mean), count, length, *ends))
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


def exp(nats: float) -> float:
    """exp, and infinity where a diverged model would overflow it."""
    return math.exp(nats) if nats < 700 else math.inf
