"""Statements about measured numbers, and what a report says of them."""

import dataclasses

from hypenet_jax.data.synthetic import Catalogue
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
        try:
            value = report.value(self.metric, self.model, self.length)
            if self.minus is not None:
                value -= report.value(self.metric, *self.minus)
            if self.over is not None:
                value /= report.value(self.metric, *self.over)
        except KeyError:
            return CheckResult(self.name, "not measured", self.bound, False, self.required)
        return CheckResult(self.name, f"{value:.4g}", self.bound, self._holds(value), self.required)

    @property
    def name(self) -> str:
        """The statement."""
        if self.text is not None:
            return self.text
        at = "" if self.length is None else f" at {self.length}"
        than = f", minus that of {self.minus[0]}" if self.minus else ""
        times = f", over that of {self.over[0]}" if self.over else ""
        return f"{self.metric} of {self.model}{at}{than}{times}"

    @property
    def bound(self) -> str:
        """The bounds in words."""
        limits = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)

    def _holds(self, value: float) -> bool:
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high


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


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One model of the comparison.

    Attributes:
      label: its name in tables and plots.
      run: name of the run whose final weights it has; None is the teacher.
      logit_scale: constant a of the log-length logit scale; None for no scaling.
      needle_lengths: context lengths at which it searches needles.
      reads: whether its perplexity is measured by context length.
      races: whether its speed and memory are measured.
    """

    label: str
    run: str | None
    needle_lengths: tuple[int, ...]
    logit_scale: float | None = None
    reads: bool = False
    races: bool = False


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a number of the report must satisfy, or the run fails.

    Attributes:
      metric, model, length: which row.
      at_least, at_most: inclusive; None does not bound.
    """

    metric: str
    model: str
    length: int | None = None
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high

    def stated(self, least: str = "at least", most: str = "at most") -> str:
        """The bound in words, or with signs in their place."""
        limits = ((least, self.at_least), (most, self.at_most))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The report of a conversion.

    Attributes:
      candidates: models to compare; the first is the teacher.
      student: label of the candidate that is the result.
      catalogue: ids of the needle task; None leaves needles out.
      needles: needles in each sequence, one of them asked for.
      sequences: needle sequences per length, and the fewer of lengths above `long_length`.
      read_lengths: context lengths of the perplexities, all on the same final targets.
      read_windows, read_targets: how many windows, and how many final tokens of each count.
      race_lengths: context lengths of prefill and decode times.
      heldout_rows: held-out rows for KL and perplexity at the training length.
      bounds: what must hold.
      prompts: texts the student continues in the report, by `sample_tokens` tokens each.
    """

    candidates: tuple[Candidate, ...]
    student: str
    catalogue: Catalogue | None
    needles: int
    sequences: int
    long_sequences: int
    long_length: int
    read_lengths: tuple[int, ...]
    read_windows: int
    read_targets: int
    race_lengths: tuple[int, ...]
    heldout_rows: int
    bounds: tuple[Bound, ...]
    prompts: tuple[str, ...]
    sample_tokens: int
