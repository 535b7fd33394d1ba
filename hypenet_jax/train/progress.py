"""Progress of a run on the terminal: a bar, or log lines where the output is no terminal."""

import datetime
import logging
import math
import sys
import time
from typing import Any

from hypenet_jax.train.metrics import Sink, Values

log = logging.getLogger("hypenet_jax")


class ProgressLines:
    """A log line at most every `seconds`, and one for every evaluation and for the last step."""

    def __init__(self, steps: int, name: str, *, seconds: float = 10.0) -> None:
        self._steps, self._name, self._seconds = steps, name, seconds
        self._rate = _Rate(steps)
        self._last = -math.inf

    def resume(self, step: int) -> None:
        self._rate.start(step)

    def write(self, step: int, kind: str, values: Values) -> None:
        self._rate.add(step, values)
        now = time.monotonic()
        if kind == "train" and step < self._steps and now - self._last < self._seconds:
            return
        self._last = now
        log.info(
            "%s step %d/%d  %s  %s", self._name, step, self._steps, _shown(kind, values), self._rate
        )

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class ProgressBar:
    """A progress bar with loss, rate and time left; evaluations are printed above it."""

    def __init__(self, steps: int, name: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        self._bar = Progress(*columns)
        self._task: Any = self._bar.add_task(name, total=steps, shown="")
        self._rate = _Rate(steps)

    def resume(self, step: int) -> None:
        self._rate.start(step)
        self._bar.update(self._task, completed=step)
        self._bar.start()

    def write(self, step: int, kind: str, values: Values) -> None:
        self._rate.add(step, values)
        shown = _shown(kind, values)
        if kind == "train":
            self._bar.update(self._task, completed=step, shown=f"{shown}  {self._rate}")
        else:
            self._bar.console.print(f"step {step}  {shown}")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._bar.stop()


def progress(steps: int, name: str) -> Sink:
    """A bar on a terminal, lines elsewhere."""
    return ProgressBar(steps, name) if sys.stderr.isatty() else ProgressLines(steps, name)


class _Rate:
    """Steps and tokens per second, without the first step, which compiles."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def start(self, step: int) -> None:
        self._first: tuple[int, float] | None = None
        self._step, self._tokens = step, 0.0

    def add(self, step: int, values: Values) -> None:
        self._step = step
        if self._first is None:
            self._first = (step, time.monotonic())
        else:
            self._tokens += values.get("tokens", 0.0)

    def __str__(self) -> str:
        if self._first is None or self._step == self._first[0]:
            return ""
        seconds = max(time.monotonic() - self._first[1], 1e-9)
        per_step = seconds / (self._step - self._first[0])
        left = datetime.timedelta(seconds=round(per_step * (self._steps - self._step)))
        return f"{1 / per_step:.3g} steps/s  {self._tokens / seconds:.3g} tokens/s  {left} left"


def _shown(kind: str, values: Values) -> str:
    names = ("loss", "learning_rate", "grad_norm") if kind == "train" else tuple(values)
    return "  ".join(f"{name} {values[name]:.4g}" for name in names)
