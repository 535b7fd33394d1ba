"""Where the numbers of a run go: metrics.jsonl always, TensorBoard if asked for, a line or a bar
for the eye.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, TextIO, runtime_checkable

import jax

Values = Mapping[str, float]


@runtime_checkable
class Sink(Protocol):
    """Something that takes records of one step. `kind` is "train" or "evaluation"."""

    def resume(self, step: int) -> None: ...
    def write(self, step: int, kind: str, values: Values) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one JSON object per line, `step`, `kind` and the values; numbers that are not
    finite become null.

    After `resume(step)` it holds exactly the records up to that step, so a resumed run has no step
    twice and none missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._file: TextIO | None = None

    def resume(self, step: int) -> None:
        """Opens the file, without records of later steps or a last line cut off by a kill."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = read_metrics(self.path) if self.path.exists() else []
        kept = [json.dumps(record) + "\n" for record in found if record["step"] <= step]
        new = self.path.with_suffix(".new")
        new.write_text("".join(kept), encoding="utf-8")
        new.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, values: Values) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._opened().write(json.dumps({"step": step, "kind": kind, **finite}) + "\n")

    def flush(self) -> None:
        """On disk, not only handed over: a checkpoint may only follow the records of its steps."""
        self._opened().flush()
        os.fsync(self._opened().fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> TextIO:
        if self._file is None:
            raise ValueError(f"{self.path}: call resume(step) before writing")
        return self._file


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole records of a metrics.jsonl, in order."""
    with pathlib.Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


class TensorBoard:
    """Event files for TensorBoard; needs the extra `tensorboard`."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import tensorboardX  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs tensorboardX: pip install 'hypenet-jax[tensorboard]'"
            ) from error
        self._open = lambda **options: tensorboardX.SummaryWriter(str(folder), **options)
        self._writer: Any = None

    def resume(self, step: int) -> None:
        # TensorBoard hides events from this step on, written by the run that was cut off.
        self._writer = self._open(purge_step=step + 1)

    def write(self, step: int, kind: str, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Metrics:
    """The sinks of a run. Only process 0 writes; the others hold none."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks if jax.process_index() == 0 else ()

    def resume(self, step: int) -> None:
        """Records start, or go on, after this step."""
        for sink in self._sinks:
            sink.resume(step)

    def write(self, step: int, kind: str, values: Values) -> None:
        for sink in self._sinks:
            sink.write(step, kind, values)

    def flush(self) -> None:
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
