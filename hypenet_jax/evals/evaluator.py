"""A measurement as a value: what it refuses, what it measures, and how that is shown.

A new kind of measurement is a subclass of `Evaluator` in a file of its own and one entry of `measurements` in a config.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax

from hypenet_jax import runtime
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, failure, report_from_json_lines
from hypenet_jax.fingerprint import digest
from hypenet_jax.train.errors import Preempted

log = logging.getLogger("hypenet_jax")

# What a measurement may raise because of what it was given; other errors are bugs.
EXPECTED = (
    *(ValueError, FloatingPointError, FileNotFoundError),
    *(MemoryError, jax.errors.JaxRuntimeError),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """What a measurement is given besides its model. Its parts are kept, so that the same command goes on after them.

    Attributes:
      model: name of the model in rows "failed"; of several models, the first.
      seed: of questions and of whatever else is drawn.
      folder: of a file for each part that is done.
      key: what the rows depend on: with other numbers, code or weights nothing that was kept is found.
      stop: asked before each part that was not kept; True ends the evaluation, and the same command resumes it.
    """

    model: str
    seed: int
    folder: pathlib.Path
    key: str
    stop: Callable[[int], bool] = lambda part: False

    def part(self, *keys: str) -> "Session":
        """The same for rows that depend on this too, such as one constant of a sweep."""
        return dataclasses.replace(self, key="\n".join((self.key, *keys)))

    def keep(self, what: str, measure: Callable[[], Report], length: int | None = None) -> Report:
        """The rows of one part of a measurement, such as needles at 4096 tokens: what process 0 kept, else new ones.

        Args:
          what: name of the part, and task of the row "failed" if it cannot be measured because of its input.
          length: context length of the part; None where there is none to speak of.
        Raises:
          Preempted: `stop` said so.
        """
        path = self.folder / f"{digest((self.key, what, self.model, length))[:24]}.jsonl"
        kept = runtime.broadcast(path.read_text(encoding="utf-8") if path.is_file() else None)
        if kept is not None:
            return report_from_json_lines(kept)
        if self.stop(0):
            raise Preempted(f"stopped before {what} of {self.model}; the same command goes on")
        try:
            report = measure()
        except EXPECTED as error:
            why = runtime.reason(error)
            log.warning("%s of %s at %s: %s", what, self.model, length, why)
            report = Report((failure(self.model, what, why, length),))
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(report.to_json_lines(), encoding="utf-8")
            os.replace(beside, path)
        return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """One kind of measurement with its numbers.

    Attributes:
      models: labels of the models that it measures; None: all.
      together: it compares models, which are loaded together and handed to `compare`, the reference first; else each
        is handed to `run` by itself. With no models at all, `compare` is called once without any.
      needs: fields that leave the measurement out where they are an empty tuple.
      shown: how its metrics are shown, in order.
    """

    models: tuple[str, ...] | None = None

    together: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("lengths",)
    shown: ClassVar[tuple[Presentation, ...]] = ()

    @property
    def active(self) -> bool:
        """Whether anything is to be measured."""
        return all(getattr(self, name, None) != () for name in self.needs)

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        """`shown`, as this very measurement is."""
        return self.shown

    @property
    def text_tokens(self) -> int:
        """Tokens of text that its longest context takes: the longest of its `lengths`, where it has such a field."""
        return max(getattr(self, "lengths", ()), default=0)

    def check(self, models: Sequence[ModelSource]) -> None:
        """Raises ValueError, FileNotFoundError or CheckpointError for what would fail after hours, or unnoticed."""

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
        """Those that it measures; raises ValueError where it names one that is not there."""
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
