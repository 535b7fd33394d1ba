"""Scores of a sweep as a frozen value: for every task a number per question of every layer."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

LayerScores = Float[np.ndarray, " L"]
Kind = Literal["retrieval", "commonsense", "kl", "mse"]
"""What a score is of, and of which model of a sweep.

"retrieval" and "commonsense": of the teacher with layer i alone replaced; more is better. Accuracies, or for
  "commonsense" the log-likelihood of text.
"kl": nats from the teacher to the student that is recurrent in all layers but i.
"mse": squared error of the mixer that stage 1 left for layer i, relative to the variance of what it imitates.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What one model of a sweep got in one task.

    Attributes:
      layer: which layer was replaced, restored or imitated; None: none was.
      kind: of the task.
      task: its name.
      values: of its questions, in the order of all other models; a single one where only their mean is known.
      weights: of the questions in their mean, such as tokens of a row; None: equal ones.
    """

    layer: int | None
    kind: Kind
    task: str
    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """The weighted mean over its questions."""
        return float(np.average(self.values, weights=self.weights))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One task of all models.

    Attributes:
      name, kind: as in `Score`.
      layers: what the model of each layer got.
      weights: of the questions.
      base: what the model got in which no layer was replaced; None where it was not scored.
    """

    name: str
    kind: Kind
    layers: Float[np.ndarray, "L Q"]
    weights: Float[np.ndarray, " Q"]
    base: Float[np.ndarray, " Q"] | None = None

    def of_questions(self, questions: Int[np.ndarray, " R"]) -> "Task":
        """The same of some of its questions, in which one may come several times."""
        base = None if self.base is None else self.base[questions]
        layers, weights = self.layers[:, questions], self.weights[questions]
        return dataclasses.replace(self, layers=layers, weights=weights, base=base)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """All tasks of a sweep, in each of which every layer was scored; what a rule reads."""

    tasks: tuple[Task, ...]

    def of(self, kind: Kind) -> LayerScores:
        """Mean over the tasks of a kind, each of which counts the same, however many questions it has.

        Raises:
          ValueError: there is none.
        """
        return np.mean([t.layers @ t.weights / t.weights.sum() for t in self._of(kind)], axis=0)

    def base(self, kind: Kind) -> float:
        """The same mean, of the model in which no layer was replaced.

        Raises:
          ValueError: it was not scored in every task of this kind.
        """
        means, missing = [], []
        for task in self._of(kind):
            if task.base is None:
                missing.append(task.name)
            else:
                means.append(task.base @ task.weights / task.weights.sum())
        if missing:
            raise ValueError(
                f"the unmodified teacher has no score in {missing}; add its scores, as those of layer null"
            )
        return float(np.mean(means))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that were scored."""
        return tuple(kind for kind in KINDS if any(task.kind == kind for task in self.tasks))

    def select(self, kinds: Iterable[Kind]) -> "Scores":
        """The tasks of these kinds alone."""
        kinds = tuple(kinds)
        return Scores(tasks=tuple(task for task in self.tasks if task.kind in kinds))

    @property
    def num_questions(self) -> int:
        """Of the task that has the fewest."""
        return min((len(task.weights) for task in self.tasks), default=0)

    def resampled(self, rng: np.random.Generator) -> "Scores":
        """Questions of each task drawn with replacement, the same for every layer: they were asked the same ones."""
        drawn = (rng.integers(0, len(t.weights), len(t.weights)) for t in self.tasks)
        pairs = zip(self.tasks, drawn, strict=True)
        return Scores(tasks=tuple(task.of_questions(questions) for task, questions in pairs))

    def _of(self, kind: Kind) -> tuple[Task, ...]:
        found = self.select((kind,)).tasks
        if not found:
            raise ValueError(f"no scores of kind {kind!r}; there are {', '.join(self.kinds)}")
        return found


def collect(scores: Iterable[Score], num_layers: int) -> Scores:
    """The table of these scores, which may come in any order.

    Raises:
      ValueError: a layer without a score, with two, or that the model does not have; models that were asked other
        questions; a score that is not finite.
    """
    tasks: dict[tuple[Kind, str], dict[int | None, Score]] = {}
    for score in scores:
        models = tasks.setdefault((score.kind, score.task), {})
        if score.layer in models:
            raise ValueError(f"{_told(score)} has two scores; leave one out")
        if score.layer is not None and not 0 <= score.layer < num_layers:
            raise ValueError(f"{_told(score)}: the model has layers 0 to {num_layers - 1}")
        models[score.layer] = score
    if not tasks:
        raise ValueError("there are no scores")
    return Scores(tasks=tuple(_task(models, num_layers) for models in tasks.values()))


def _task(models: dict[int | None, Score], num_layers: int) -> Task:
    first = next(iter(models.values()))
    missing = sorted(set(range(num_layers)) - models.keys())
    if missing:
        raise ValueError(f"layers {missing} have no score in {first.kind} {first.task}; score them")
    for score in models.values():
        if len(score.values) != len(first.values):
            raise ValueError(
                f"{_told(score)} has {len(score.values)} questions, {_told(first)} {len(first.values)}; ask all models "
                "the same ones"
            )
        if score.weights != first.weights:
            raise ValueError(f"{_told(score)} weighs questions otherwise than {_told(first)}")
        if not np.isfinite(score.values).all():
            raise ValueError(f"scores must be finite, and {_told(score)} has {score.mean}")
    rows = np.asarray([models[layer].values for layer in range(num_layers)], np.float64)
    base = np.asarray(models[None].values, np.float64) if None in models else None
    weights = np.asarray(first.weights or np.ones(len(first.values)), np.float64)
    return Task(name=first.task, kind=first.kind, layers=rows, weights=weights, base=base)


def _told(score: Score) -> str:
    layer = "the unmodified model" if score.layer is None else f"layer {score.layer}"
    return f"{layer} in {score.kind} {score.task}"


Measure = Callable[[], Sequence[Score]]
"""Scores one model."""
