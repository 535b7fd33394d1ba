"""A model completes the prompts of a task, greedily; a question that cannot be answered fails alone."""

from collections.abc import Sequence

import numpy as np

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, failure, scored
from hypenet_jax.evals.ruler.tasks import TASKS, match_all
from hypenet_jax.evals.ruler.text import Question
from hypenet_jax.generation.generate import GenerationConfig, generate_batches
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


def task_scores(
    model: EvalModel,
    tokenizer: Tokenizer,
    task: str,
    questions: Sequence[Question],
    length: int,
    *,
    stop: tuple[int, ...],
) -> Report:
    """How much of the right answers the model writes, greedily, within the budget of the task.

    Args:
      stop: tokens that end an answer.
    Returns:
      Rows "ruler", and "ruler_by_depth" for tasks with one answer, with Wilson intervals of 95 %; a row "failed" for
      each question that could not be answered, and why. Failed questions do not count.
    Raises:
      MemoryError, JaxRuntimeError: the device has no room for a batch.
    """
    assert isinstance(model.decoder, Decoder)
    budget = TASKS[task].budget
    config = GenerationConfig(max_new_tokens=budget, max_length=length, stop_tokens=stop)
    # One width: one compiled program per length and budget.
    batches = generate_batches(
        *(model.decoder, model.params, [question.tokens for question in questions], config),
        width=length - budget,
    )
    results = {row: result for batch in batches for row, result in batch.items()}
    scores, report = np.full(len(questions), np.nan), Report()
    for i, question in enumerate(questions):
        error = results[i].error
        if error is None:
            scores[i] = match_all(tokenizer.decode(results[i].tokens), question.answers)
        elif isinstance(error, ValueError | FloatingPointError):
            report = report.add(failure(model.name, task, f"question {i}: {error}", length))
        else:
            raise error
    by_depth = all(question.depth is not None for question in questions)
    found = scored("ruler", model.name, scores, length=length, task=task, by_depth=by_depth)
    return report + found
