"""Tasks in the manner of RULER as a measurement."""

import dataclasses
import functools
from collections.abc import Sequence

from hypenet_jax.evals.evaluator import Evaluator, Session, check_known, check_positive
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.ruler.cache import cached_questions
from hypenet_jax.evals.ruler.scoring import PRESENTATIONS, task_scores
from hypenet_jax.evals.ruler.tasks import TASKS
from hypenet_jax.evals.ruler.text import Haystacks, sentences_of


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

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "samples")

    @property
    def active(self) -> bool:
        return bool(self.tasks and self.lengths)

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return PRESENTATIONS

    def check(self, models: Sequence[ModelSource]) -> None:
        check_known("tasks", self.tasks, tuple(TASKS))

    def run(self, model: EvalModel, session: Session) -> Report:
        """Rows of every task and length, and "ruler_mean" of the lengths at which all tasks were measured."""
        haystacks, report = functools.cache(lambda: _haystacks(model)), Report()
        for length in self.lengths:
            scores = Report()
            for task in self.tasks:

                def measure(task: str = task, length: int = length) -> Report:
                    return self._scores(model, haystacks(), task, length, session.seed)

                scores += session.keep(task, measure, length)
            report += scores
            values = [row.value for row in scores.select("ruler").rows]
            if len(values) == len(self.tasks):
                mean = sum(values) / len(values)
                report = report.add(Row("ruler_mean", model.name, mean, len(values), length))
        return report

    def _scores(
        self, model: EvalModel, haystacks: Haystacks, task: str, length: int, seed: int
    ) -> Report:
        questions = cached_questions(
            task, haystacks, length, count=self.samples, seed=seed, folder=self.cache
        )
        return task_scores(model, haystacks.tokenizer, task, questions, length, stop=model.end_ids)


def _haystacks(model: EvalModel) -> Haystacks:
    """The text as sentences, to hide needles in."""
    assert model.tokenizer is not None
    sentences = sentences_of(model.tokenizer.decode(model.text))
    return Haystacks(model.tokenizer, model.tokenizer.encode_all(sentences))
