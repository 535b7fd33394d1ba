"""Progress of a run on the terminal: a bar, or log lines where the output is no terminal."""

import datetime
import logging
import math
import sys
import time

from hypenet_jax.train.metrics import Sink, Values

log = logging.getLogger("hypenet_jax")


class ProgressDisplay(Sink):
    """A bar with loss, rate and time left, and evaluations above it; where the output is no terminal, a log line at
    most every `seconds`, and one for every evaluation and for the last step.
    """

    def __init__(self, steps: int, name: str, *, seconds: float = 10.0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress

        self._steps, self._name, self._seconds, self._last = steps, name, seconds, -math.inf
        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[shown]}"
        hidden = not sys.stderr.isatty()
        self._bar = Progress(*columns, disable=hidden, speed_estimate_period=math.inf)

    def resume(self, step: int) -> None:
        self._step = self._bar.add_task(self._name, total=self._steps, completed=step, shown="")
        self._tokens = self._bar.add_task("tokens", total=None, visible=False, shown="")
        self._bar.start()

    def write(self, step: int, kind: str, values: Values) -> None:
        training, now = kind == "train", time.monotonic()
        names = ("loss", "learning_rate", "grad_norm") if training else values
        shown = "  ".join(_shown({name: values[name] for name in names}))
        if training:
            self._bar.advance(self._tokens, values.get("tokens", 0.0))
        if kind != "evaluation":
            self._bar.update(self._step, completed=step)
            self._bar.update(self._step, shown=f"{shown}  {self._rate()}")
        due = step == self._steps or now - self._last >= self._seconds
        if not training or (due and self._bar.disable):
            self._last = now
            place = self._name, step, self._steps
            log.info("%s step %d/%d  %s  %s", *place, shown, self._rate())

    def close(self) -> None:
        self._bar.stop()

    def _rate(self) -> str:
        """Steps and tokens per second, without the first step, which compiles."""
        step, tokens = self._bar.tasks
        if not step.speed:
            return ""
        left = datetime.timedelta(seconds=step.time_remaining or 0)
        read = f"  {tokens.speed:.3g} tokens/s" if tokens.speed else ""
        return f"{step.speed:.3g} steps/s{read}  {left} left"


def _shown(values: Values) -> list[str]:
    """Each value; of those of many layers, such as `gate/3`, the least and the most."""
    texts = [f"{name} {value:.4g}" for name, value in values.items() if "/" not in name]
    for series in dict.fromkeys(name.split("/")[0] for name in values if "/" in name):
        own = [value for name, value in values.items() if name.startswith(f"{series}/")]
        texts.append(f"{series} {min(own):.4g} to {max(own):.4g}")
    return texts
