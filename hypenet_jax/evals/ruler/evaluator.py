"""Tasks in the manner of RULER as a measurement; a question that cannot be answered fails alone."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hypenet_jax.evals.evaluator import Evaluator, Session, check_known, check_positive
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, failure, scored
from hypenet_jax.evals.ruler.tasks import TASKS, match_all, questions
from hypenet_jax.evals.ruler.text import Haystacks, Question, sentences_of
from hypenet_jax.fingerprint import digest
from hypenet_jax.generation.generate import GenerationConfig, generate_batches
from hypenet_jax.model.decoder import Decoder

log = logging.getLogger("hypenet_jax")

# Of the questions of a seed and of their file: raised whenever they change.
VERSION = 2
_SECTION = "Tasks in the manner of RULER"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerEvaluator(Evaluator):
    """Tasks in the manner of RULER.

    Attributes:
      tasks: names of `hypenet_jax.evals.ruler.tasks.TASKS`.
      lengths: tokens of the question and of what may be written to answer it; none leaves the tasks out.
      samples: questions per task and length.
      cache: folder where the questions are kept; None builds them anew.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    lengths: tuple[int, ...] = ()
    samples: int = 20
    cache: str | None = None

    needs: ClassVar = ("tasks", "lengths")
    shown: ClassVar = (
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

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "samples")

    def check(self, models: Sequence[ModelSource]) -> None:
        check_known("tasks", self.tasks, tuple(TASKS))

    def run(self, model: EvalModel, session: Session) -> Report:
        """Rows of every task and length, and "ruler_mean" of the lengths at which all tasks were measured."""
        haystacks, report = functools.cache(lambda: _haystacks(model)), Report()

        def measure(task: str, length: int) -> Report:
            asked = self.questions(task, haystacks(), length, session.seed)
            return task_scores(model, task, asked, length)

        for length in self.lengths:
            parts = (
                session.keep(t, functools.partial(measure, t, length), length) for t in self.tasks
            )
            scores = sum(parts, Report())
            report += scores
            values = [row.value for row in scores.select("ruler").rows]
            if len(values) == len(self.tasks):
                mean = sum(values) / len(values)
                report = report.add(Row("ruler_mean", model.name, mean, len(values), length))
        return report

    def questions(self, task: str, haystacks: Haystacks, length: int, seed: int) -> list[Question]:
        """`tasks.questions`, from the folder where they are there, else made and kept there.

        A file is whole or not there. One that cannot be read is made again.
        """
        make = functools.partial(questions, task, haystacks, length, count=self.samples, seed=seed)
        if self.cache is None:
            return make()
        text = hashlib.sha256(b"".join(s.tobytes() for s in haystacks.sentences)).hexdigest()
        depends = VERSION, task, length, self.samples, seed, haystacks.tokenizer.fingerprint, text
        path = pathlib.Path(self.cache) / f"{task}-{length}-{digest(depends)[:16]}.npz"
        if path.is_file():
            try:
                return _read(path)
            except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
                log.warning("%s is damaged (%s); its questions are made again", path, error)
        made = make()
        _write(path, made)
        return made


def _haystacks(model: EvalModel) -> Haystacks:
    """The text as sentences, to hide needles in."""
    assert model.tokenizer is not None
    sentences = sentences_of(model.tokenizer.decode(model.text))
    return Haystacks(model.tokenizer, model.tokenizer.encode_all(sentences))


def task_scores(model: EvalModel, task: str, questions: Sequence[Question], length: int) -> Report:
    """How much of the right answers the model writes, greedily, within the budget of the task.

    Returns:
      Rows "ruler", and "ruler_by_depth" for tasks with one answer, with Wilson intervals of 95 %; a row "failed" for
      each question that could not be answered, and why. Failed questions do not count.
    Raises:
      MemoryError, JaxRuntimeError: the device has no room for a batch.
    """
    assert isinstance(model.decoder, Decoder)
    assert model.tokenizer is not None
    budget, prompts = TASKS[task].budget, [question.tokens for question in questions]
    config = GenerationConfig(max_new_tokens=budget, max_length=length, stop_tokens=model.end_ids)
    # One width: one compiled program per length and budget.
    batches = generate_batches(model.decoder, model.params, prompts, config, width=length - budget)
    results = {row: result for batch in batches for row, result in batch.items()}
    scores, report = np.full(len(questions), np.nan), Report()
    for i, question in enumerate(questions):
        error = results[i].error
        if error is None:
            scores[i] = match_all(model.tokenizer.decode(results[i].tokens), question.answers)
        elif isinstance(error, ValueError | FloatingPointError):
            report = report.add(failure(model.name, task, f"question {i}: {error}", length))
        else:
            raise error
    by_depth = all(question.depth is not None for question in questions)
    return report + scored("ruler", model.name, scores, length=length, task=task, by_depth=by_depth)


def _write(path: pathlib.Path, made: list[Question]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(
            file,
            tokens=np.concatenate([question.tokens for question in made]),
            lengths=[len(question.tokens) for question in made],
            answers=json.dumps([(question.answers, question.depth) for question in made]),
        )
    os.replace(file.name, path)


def _read(path: pathlib.Path) -> list[Question]:
    with np.load(path) as file:
        rows = np.split(file["tokens"], np.cumsum(file["lengths"])[:-1])
        answers = json.loads(file["answers"].item())
    return [Question(row, tuple(a), depth) for row, (a, depth) in zip(rows, answers, strict=True)]
