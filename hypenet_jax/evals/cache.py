"""Rows of an evaluation that was cut off, so that the same command goes on after them."""

import dataclasses
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.evals.report import Report, failure, report_from_json_lines

log = logging.getLogger("hypenet_jax")

# What a measurement may raise because of what it was given; other errors are bugs.
EXPECTED = (
    *(ValueError, FloatingPointError, FileNotFoundError),
    *(MemoryError, jax.errors.JaxRuntimeError),
)


@dataclasses.dataclass(frozen=True)
class ResultCache:
    """A file for each part of a measurement that is done, below the folder of the evaluation; gone when that is done.

    Attributes:
      key: what the rows depend on: with other numbers, code or weights nothing is in the cache.
    """

    folder: pathlib.Path
    key: str

    def of(self, *keys: str) -> "ResultCache":
        """The rows that depend on this too."""
        return dataclasses.replace(self, key="\n".join((self.key, *keys)))

    def __call__(self, part: str, measure: Callable[[], Report]) -> Report:
        """The rows that were kept for a part, else those measured now; every process has those of process 0."""
        name = hashlib.sha256(f"{self.key}\n{part}".encode()).hexdigest()[:24]
        path = self.folder / f"{name}.jsonl"
        kept = runtime.broadcast(path.read_text(encoding="utf-8") if path.is_file() else None)
        if kept is not None:
            return report_from_json_lines(kept)
        report = measure()
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(report.to_json_lines(), encoding="utf-8")
            os.replace(beside, path)
        return report

    def clear(self) -> None:
        """Removes the rows: the evaluation is done, and its next run measures anew."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def attempt(model: str, what: str, length: int | None, measure: Callable[[], Report]) -> Report:
    """The rows of a measurement, or the row "failed" that says why there are none."""
    try:
        return measure()
    except EXPECTED as error:
        why = runtime.reason(error)
        log.warning("%s of %s at %s: %s", what, model, length, why)
        return Report((failure(model, what, why, length),))
