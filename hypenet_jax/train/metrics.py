"""Where the metrics of a run are written: metrics.jsonl, optionally TensorBoard, and the terminal."""

import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TextIO

import jax

Values = Mapping[str, float]


class Sink:
    """A destination of metrics. `kind` is "train", "evaluation", or "fit" of a kernel in closed form."""

    def resume(self, step: int) -> None:
        """Prepares for records after this step."""

    def write(self, step: int, kind: str, values: Values) -> None:
        """Records the values of one step."""

    def flush(self) -> None:
        """Makes what was recorded durable."""

    def close(self) -> None:
        """Ends the records."""


class MetricsFile(Sink):
    """metrics.jsonl: one JSON object per line with `step`, `kind`, `notes`, values; non-finite numbers become null.

    `resume(step)` drops the records after that step, so a resumed run has every step exactly once.
    """

    def __init__(self, path: str | os.PathLike[str], **notes: str) -> None:
        self.path, self._notes = pathlib.Path(path), notes
        self._file: TextIO | None = None

    def resume(self, step: int) -> None:
        """Opens the file and drops records of later steps and an incomplete last line; step 0 starts it anew."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = read_metrics(self.path) if self.path.exists() else []
        kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step > 0]
        new = self.path.with_suffix(".new")
        new.write_text("".join(kept), encoding="utf-8")
        new.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, values: Values) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        assert self._file is not None, "resume comes first"
        record = {"step": step, "kind": kind, **self._notes, **finite}
        self._file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Forces the records to disk: a checkpoint may only follow the records of its steps."""
        assert self._file is not None, "resume comes first"
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All complete records of a metrics.jsonl, in order."""
    with pathlib.Path(path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


class TensorBoard(Sink):
    """Event files for TensorBoard; needs the extra `tensorboard`."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import tensorboardX  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs tensorboardX: pip install 'hypenet-jax[tensorboard]'"
            ) from error
        self._open = functools.partial(tensorboardX.SummaryWriter, str(folder))
        self._writer: Any = None

    def resume(self, step: int) -> None:
        # TensorBoard then hides later events, which the interrupted run wrote.
        self._writer = self._open(purge_step=step + 1)

    def write(self, step: int, kind: str, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Metrics(Sink):
    """All sinks of a run. Only process 0 writes; the other processes have no sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks if jax.process_index() == 0 else ()

    def resume(self, step: int) -> None:
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
