"""What an evaluation found, as it is handed to `hypenet_jax.evals.present`."""

import dataclasses
import functools

from hypenet_jax.evals.checks import CheckResult
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.present.presentation import Presentation, length_text
from hypenet_jax.evals.report import Report


@dataclasses.dataclass(frozen=True)
class Results:
    """The numbers, and what is shown of them.

    Attributes:
      config: what was measured, of which models.
      report: the numbers.
    """

    config: EvaluationConfig
    report: Report

    @functools.cached_property
    def checks(self) -> tuple[CheckResult, ...]:
        """Statements about the numbers, and whether they hold."""
        return tuple(check.result(self.report) for check in self.config.checks)

    @property
    def passed(self) -> bool:
        """Whether every check that is required holds."""
        return not any(check.failed for check in self.checks)

    @property
    def models(self) -> tuple[str, ...]:
        """Labels in the order of tables and colours; the others are compared with the first."""
        return tuple(source.label for source in self.config.models)

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        """How each metric that has rows is shown, in the order of the page."""
        every = {p.metric: p for one in self.config.active.values() for p in one.presentations}
        return tuple(p for p in every.values() if p.rows(self.report))

    @property
    def summary(self) -> list[tuple[str, str]]:
        """(label, value) pairs for the head of the page: how far it went, what held, what each measurement says."""
        measured = Report(tuple(row for row in self.report.rows if row.metric != "failed"))
        pairs = [("longest context", length_text(max(measured.lengths, default=0)))]
        if self.checks:
            held = sum(check.passed for check in self.checks)
            pairs.append(("checks that hold", f"{held} of {len(self.checks)}"))
        for one in self.config.active.values():
            pairs += one.summary(self.report)
        failed = sum(row.count for row in self.report.select("failed").rows)
        return [*pairs, ("samples that failed", f"{failed}")]
