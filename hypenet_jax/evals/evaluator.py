"""A measurement as a value: what it refuses, what it measures, and how that is shown.

A new kind of measurement is a subclass of `Evaluator` in a file of its own and one entry of `measurements` in a config.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

from jax.sharding import Mesh

from hypenet_jax.evals.cache import ResultCache, attempt
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report
from hypenet_jax.train.errors import Preempted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """What a measurement is given besides its model.

    Attributes:
      model: name of the model in rows "failed"; of several models, the first.
      seed: of questions and of whatever else is drawn.
      mesh: where the model lies; a measurement runs inside `on_mesh(mesh)`.
      cache: what an earlier run of the same measurement on the same model has finished.
      stop: asked before each part that is not in the cache; True ends the evaluation, and the same command resumes it.
    """

    model: str
    seed: int
    mesh: Mesh
    cache: ResultCache
    stop: Callable[[int], bool] = lambda part: False

    def keep(self, what: str, measure: Callable[[], Report], length: int | None = None) -> Report:
        """The rows of one part of a measurement, such as needles at 4096 tokens: from the cache, else measured now.

        Args:
          what: name of the part, and task of the row "failed" if it cannot be measured because of its input.
          length: context length of the part; None where there is none to speak of.
        Raises:
          Preempted: `stop` said so.
        """

        def now() -> Report:
            if self.stop(0):
                raise Preempted(f"stopped before {what} of {self.model}; the same command goes on")
            return attempt(self.model, what, length, measure)

        return self.cache(f"{what} of {self.model} at {length}", now)

    def part(self, name: str) -> "Session":
        """The same for a part that has parts of its own, such as one constant of a sweep."""
        return dataclasses.replace(self, cache=self.cache.of(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """One kind of measurement with its numbers.

    Attributes:
      models: labels of the models that it measures; None: all.
      together: it compares models, which are loaded together and handed to `compare`, the reference first; else each
        is handed to `run` by itself. With no models at all, `compare` is called once without any.
    """

    models: tuple[str, ...] | None = None

    together: ClassVar[bool] = False

    @property
    def active(self) -> bool:
        """Whether anything is to be measured: not with an empty tuple of `lengths`."""
        return getattr(self, "lengths", None) != ()

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        """How its metrics are shown, in order."""
        return ()

    @property
    def text_tokens(self) -> int:
        """Tokens of text that its longest context takes: the longest of its `lengths`, where it has such a field."""
        return max(getattr(self, "lengths", ()), default=0)

    def check(self, models: Sequence[ModelSource]) -> None:
        """Refuses these models before anything is measured: mistakes that would show after hours, or not at all.

        Raises:
          ValueError, FileNotFoundError, CheckpointError: says what cannot be measured and what would work.
        """

    def run(self, model: EvalModel, session: Session) -> Report:
        """The rows of one model; what its input keeps from being measured is a row "failed", see `Session.keep`."""
        raise NotImplementedError

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        """The rows of all models, where `together`."""
        raise NotImplementedError

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        """(label, value) pairs for the head of the page."""
        return ()

    def selected(self, models: Sequence[ModelSource]) -> tuple[ModelSource, ...]:
        """Those that it measures.

        Raises:
          ValueError: it names one that is not there.
        """
        labels = [source.label for source in models]
        check_known("models", self.models or (), labels)
        return tuple(s for s in models if self.models is None or s.label in self.models)


def check_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError: some of these names are not known; lists those that are."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no {what} {unknown}; there are {', '.join(known)}")


def check_positive(section: object, *names: str) -> None:
    """Raises ValueError: one of these fields, or one of several numbers in it, is below 1."""
    for name in names:
        value = getattr(section, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and number < 1 for number in numbers):
            raise ValueError(f"{name} {value} in {type(section).__name__}; use at least 1")
