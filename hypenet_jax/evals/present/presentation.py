"""How the rows of one metric are shown. Each measurement says it beside its code; page, figures and document follow."""

import dataclasses
import fnmatch
from typing import Literal

from hypenet_jax.evals.present.units import Unit
from hypenet_jax.evals.report import Report

Kind = Literal["lines", "table", "list", "bars", "heat map", "curves", "texts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Presentation:
    """How the rows of one metric are shown; a metric without rows is left out.

    What each kind reads of a row, besides its value, interval and count:
      "lines": a line per model over `length`, and the numbers as a table; logarithmic for seconds and bytes.
      "table": numbers by `length`, a line per model and label; with tasks a table per model, a line per task.
      "list": a line per row, whose columns are the fields that differ; a list of counts ends with their sum.
      "bars": a bar per `label`, coloured by `task`, which names the series ("first step", "last step").
      "heat map": a cell per `length` and `depth`, a figure per model and task.
      "curves": a line over `step`, a figure per model, which is here the name of a stage; `task` names the loss.
      "texts": `task` is a prompt, `label` what the model wrote after it.

    Attributes:
      metric: of the rows; "harness/*" are all that start so.
      title: heading of its section, or of its figure in a section of several.
      note: a sentence or two below it; "{counts}" becomes the least and the most `count` of the rows.
      unit: how a number is written.
      kind: see above.
      label: name of the axis of the values.
      section: heading that presentations one after another share; None: the title alone.
      reference: value and name of a dotted line, such as the accuracy of guessing.
      better: "faster" or "smaller": each number also says how many times better than the first model's it is.
      ratio: metric of that ratio where it was measured in turns; None: it is computed from the numbers.
      best: metric of the one row of a list that is marked as the best.
    """

    metric: str
    title: str
    note: str = ""
    unit: Unit = "number"
    kind: Kind = "lines"
    label: str = ""
    section: str | None = None
    reference: tuple[float, str] | None = None
    better: Literal["faster", "smaller"] | None = None
    ratio: str | None = None
    best: str | None = None

    def rows(self, report: Report) -> Report:
        """Those of its rows that a report has."""
        return Report(tuple(r for r in report.rows if fnmatch.fnmatchcase(r.metric, self.metric)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A Markdown file of the measured tables and what they say of the claims.

    Attributes:
      path: where it goes.
      title, about: its heading, and what stands below it: which models these are and how they were made.
      trained_length: context lengths are also told as multiples of it.
      figure: SVG file of needle accuracy and time per token by context length; None: not drawn.
    """

    path: str
    title: str
    about: str
    trained_length: int
    figure: str | None = None
