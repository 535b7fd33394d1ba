"""A model writes its answers to questions, in batches; a question that cannot be answered fails alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, failure, scored
from hypenet_jax.evals.ruler.tasks import TASKS, match_all
from hypenet_jax.evals.ruler.text import Question
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, batches_of
from hypenet_jax.generation.decode import decode
from hypenet_jax.generation.model import check_memory
from hypenet_jax.generation.prefill import left_padded, prefill, start_context, unsupported_reason
from hypenet_jax.model.decoder import Decoder

_SECTION = "Tasks in the manner of RULER"
PRESENTATIONS = (
    Presentation(
        metric="ruler_mean",
        title="Mean of the tasks",
        note="Share of the right answers that the model writes, mean over the tasks.",
        unit="share",
        label="score",
        section=_SECTION,
    ),
    Presentation(
        metric="ruler",
        title="Each task",
        note="{counts} questions per number, the same for models of one tokenizer.",
        unit="share",
        kind="table",
        section=_SECTION,
    ),
    Presentation(
        metric="ruler_by_depth",
        title="Tasks by depth",
        note="Score by context length and by where in it the answer lies; the deepest is nearest to the question.",
        unit="share",
        kind="heat map",
    ),
)

Prompt = Int[np.ndarray, " _"]
Written = Int[np.ndarray, " M"] | Exception


def task_scores(
    subject: EvalModel,
    tokenizer: Tokenizer,
    task: str,
    asked: Sequence[Question],
    length: int,
    *,
    stop: tuple[int, ...],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """How much of the right answers the model writes, greedily, within the budget of the task.

    Args:
      stop: tokens that end an answer.
    Returns:
      Rows "ruler", and "ruler_by_depth" for tasks with one answer, with Wilson intervals of 95 %; a row "failed" for
      each question that could not be answered, and why. Failed questions do not count.
    """
    written = write(
        subject,
        [one.tokens for one in asked],
        length,
        TASKS[task].budget,
        stop=stop,
        tokens_per_batch=tokens_per_batch,
    )
    found = np.full(len(asked), np.nan)
    report = Report()
    for i, (one, tokens) in enumerate(zip(asked, written, strict=True)):
        if isinstance(tokens, Exception):
            report = report.add(failure(subject.name, task, f"question {i}: {tokens}", length))
        else:
            found[i] = match_all(tokenizer.decode(tokens), one.answers)
    return report + scored(
        "ruler",
        subject.name,
        found,
        length=length,
        task=task,
        by_depth=all(one.depth is not None for one in asked),
    )


def write(
    subject: EvalModel,
    prompts: Sequence[Prompt],
    length: int,
    budget: int,
    *,
    stop: tuple[int, ...],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Written]:
    """What the model writes after each prompt, up to `budget` tokens; or what keeps it from it: a prompt that is empty
    or leaves no room for the budget within `length`, token ids that the model does not have, NaN.

    Raises:
      MemoryError: see `check_memory`.
    """
    vocabulary, longest = subject.decoder.config.vocab_size, length - budget
    whys = [unsupported_reason(row, vocabulary, budget, length) for row in prompts]
    written: list[Written] = [ValueError(why) for why in whys]
    good = [i for i, why in enumerate(whys) if why is None]
    # One width: one compiled program per length and budget.
    padded = left_padded([prompts[i] for i in good], longest)
    left = iter(good)
    batches = zip(*(batches_of(rows, tokens_per_batch) for rows in padded), strict=True)
    for (tokens, count), (segments, _) in batches:
        for answer in _answers(subject, tokens, segments, budget, stop)[:count]:
            written[next(left)] = answer
    return written


def _answers(
    subject: EvalModel,
    tokens: Int[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"],
    budget: int,
    stop: tuple[int, ...],
) -> list[Written]:
    """Of a batch; a row whose logits become NaN has an error, and the others are as without it."""
    decoder, params = subject.decoder, subject.params
    assert isinstance(decoder, Decoder)
    check_memory(decoder, len(tokens), tokens.shape[1] + budget)
    context = start_context(decoder, len(tokens), tokens.shape[1] + budget)
    context = prefill(decoder, params, context, tokens, segment_ids=segments)
    found = decode(decoder, params, context, max_new_tokens=budget, stop_token=stop)
    return [
        FloatingPointError("the model computes NaN logits") if broken else row
        for row, broken in zip(found.tokens, found.broken, strict=True)
    ]
