"""What an evaluation found, as it is handed to `hypenet_jax.evals.present`."""

import dataclasses

from hypenet_jax.evals.checks import CheckResult
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All that is shown of an evaluation; a part that is empty is left out.

    `present.write.write_results(folder, results, document)` writes index.html with its figures and numbers to a folder,
    and the Markdown document where there is one.

    Attributes:
      title, lead: heading of the page, and a sentence or two below it.
      models: labels in the order of tables and colours; the others are compared with the first.
      summary: (label, value) pairs for the head of the page.
      report: the numbers.
      presentations: how each metric is shown, in the order of the page; a metric without rows is left out.
      checks: statements about the numbers, and whether they hold.
    """

    title: str
    lead: str
    models: tuple[str, ...]
    summary: tuple[tuple[str, str], ...]
    report: Report
    presentations: tuple[Presentation, ...]
    checks: tuple[CheckResult, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check that is required holds."""
        return not any(check.failed for check in self.checks)
