"""Rows of a suite that was cut off, so that the same command goes on after them."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.config import resolved
from hypenet_jax.evals import Report
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.report import report_from_json_lines


@dataclasses.dataclass(frozen=True)
class KeptRows:
    """A file for each measurement that is done, below the folder of the suite; gone when the suite is.

    Attributes:
      about: what the rows depend on; with another suite or code, or for another fingerprint, nothing is found.
    """

    folder: pathlib.Path
    about: str

    def of(self, *fingerprints: str) -> "KeptRows":
        """The rows of what has these fingerprints alone."""
        return dataclasses.replace(self, about="\n".join((self.about, *fingerprints)))

    def __call__(self, what: str, measured: Callable[[], Report]) -> Report:
        """The rows that were kept for `what`, else those measured now; every process has those of process 0."""
        name = hashlib.sha256(f"{self.about}\n{what}".encode()).hexdigest()[:24]
        path = self.folder / f"{name}.jsonl"
        kept = runtime.broadcast(path.read_text(encoding="utf-8") if path.is_file() else None)
        if kept is not None:
            return report_from_json_lines(kept)
        report = measured()
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(report.to_json_lines(), encoding="utf-8")
            os.replace(beside, path)
        return report

    def forget(self) -> None:
        """Removes the rows: the suite is done, and its next run measures anew."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def kept_rows(config: EvaluationConfig) -> KeptRows:
    """What an earlier run of this very suite has left."""
    measured = dataclasses.replace(config, claims=(), document=None, conversion=None)
    about = {"config": resolved(measured), "code": runtime.code_version()}
    return KeptRows(pathlib.Path(config.out) / "parts", json.dumps(about, sort_keys=True))
