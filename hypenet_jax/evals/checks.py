"""Statements about measured numbers, and what a report says of them."""

import dataclasses
import math

from hypenet_jax.evals.report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A number of a report and what it must satisfy.

    Attributes:
      metric, model, length: which row.
      at_least, at_most: inclusive bounds; None does not bound.
      minus, over: model and length of a row of the same metric that is subtracted, or divided by; None: neither.
      text: the statement; None: the row in words.
      required: the evaluation fails if it does not hold; else the result is only shown.
    """

    metric: str
    model: str
    length: int | None = None
    at_least: float | None = None
    at_most: float | None = None
    minus: tuple[str, int | None] | None = None
    over: tuple[str, int | None] | None = None
    text: str | None = None
    required: bool = True

    def result(self, report: Report) -> "CheckResult":
        """What the numbers say; what was not measured does not hold."""
        at = "" if self.length is None else f" at {self.length}"
        than = f", minus that of {self.minus[0]}" if self.minus else ""
        times = f", over that of {self.over[0]}" if self.over else ""
        name = self.text or f"{self.metric} of {self.model}{at}{than}{times}"
        limits = (("at least", self.at_least), ("at most", self.at_most))
        bound = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
        try:
            value = report.value(self.metric, self.model, self.length)
            if self.minus is not None:
                value -= report.value(self.metric, *self.minus)
            if self.over is not None:
                value /= report.value(self.metric, *self.over)
        except KeyError:
            return CheckResult(name, "not measured", bound, False, self.required)
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        passed = low <= value <= high
        return CheckResult(name, f"{value:.4g}", bound, passed, self.required)


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """A check as it is shown, for instance: needle of HypeNet at 2048 | 0.98 | at least 0.9 | passed."""

    name: str
    value: str
    bound: str
    passed: bool
    required: bool = True

    @property
    def failed(self) -> bool:
        """Whether the evaluation fails for it."""
        return self.required and not self.passed

    def line(self) -> str:
        """The result in a line of text."""
        mark = "ok" if self.passed else "MISSED" if self.required else "missed, not required"
        return f"{mark:6} {self.name}: {self.value}, {self.bound}"
