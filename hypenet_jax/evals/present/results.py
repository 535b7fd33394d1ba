"""All that a page shows, as values."""

import dataclasses
from collections.abc import Mapping, Sequence

from hypenet_jax.evals.present.charts import Number
from hypenet_jax.evals.report import Report


@dataclasses.dataclass(frozen=True)
class Curve:
    """The loss of one stage, step by step."""

    stage: str
    steps: Sequence[int]
    losses: Sequence[Number]
    loss_name: str


@dataclasses.dataclass(frozen=True)
class LayerError:
    """Stage 1's error of one layer relative to the variance of its target: at the first step and at
    the last.
    """

    layer: int
    first: Number
    last: Number


@dataclasses.dataclass(frozen=True)
class LayerScore:
    """How much the model needs softmax attention in this layer, and whether it keeps it."""

    layer: int
    importance: Number
    kept: bool


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that must hold, for instance: needle accuracy at 2048 | 0.98 | at least 0.90 |
    passed.
    """

    name: str
    value: str
    bound: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a page shows; a part that is empty is left out.

    Attributes:
      title: heading of the page.
      lead: one or two sentences below it.
      models: names of models in the order of tables and colours; the first is the one others are
        compared with.
      summary: (label, value) pairs, the headline of the page.
      report: the numbers; each metric has its section, as far as it was measured.
      chance: needle accuracy of guessing.
      tokens: tokens that each stage was trained on, in order.
    """

    title: str
    lead: str
    models: tuple[str, ...]
    summary: tuple[tuple[str, str], ...]
    report: Report
    chance: Number | None = None
    curves: tuple[Curve, ...] = ()
    alignment: tuple[LayerError, ...] = ()
    selection: tuple[LayerScore, ...] = ()
    checks: tuple[Check, ...] = ()
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
