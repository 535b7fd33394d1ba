"""What is measured of models in folders, as a value."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import tyro

from hypenet_jax.data.sources import Source
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.evaluator import Evaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.present.presentation import DRAWN
from hypenet_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentFigure:
    """An SVG file that stands in the document under the heading of its first metric.

    Attributes:
      path: where it goes.
      metrics: drawn side by side; those that were not measured are left out.
    """

    path: str
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A Markdown file of the measured tables, of figures and texts, and what they say of the claims.

    Attributes:
      path: where it goes.
      title, description: its heading, and what stands below it: which models these are and how they were made.
      trained_length: context lengths are also told as multiples of it.
      figures: in the order in which they stand under one heading.
    """

    path: str
    title: str
    description: str
    trained_length: int
    figures: tuple[DocumentFigure, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Measurements of models in folders.

    Attributes:
      models: the first is the one that others are compared with.
      out: folder of the page, the rows and the results of the checks.
      text: read for perplexities, and the haystack of tasks that ask for ordinary text.
      measurements: by name, in the order of the page; the fields of `speed` are --speed.FIELD on the command line.
      checks: statements about the numbers; those that are required decide whether the command succeeds.
      title, lead: heading of the page, and a sentence or two below it.
      document: a Markdown file to write as well; None: none.
      dtype: of weights and computation; None: as stored.
      mesh: sizes of the mesh axes; by default rows are dealt to all devices.
      seed: of questions.
    """

    models: Annotated[tuple[ModelSource, ...], tyro.conf.Fixed]
    out: str
    text: Annotated[Source | HeldOut, tyro.conf.Fixed]
    measurements: Annotated[dict[str, Evaluator], tyro.conf.arg(name="")]
    checks: Annotated[tuple[Check, ...], tyro.conf.Fixed] = ()
    title: str = "Long contexts"
    lead: str = "Every number was measured by this run."
    document: Annotated[Document | None, tyro.conf.Fixed] = None
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    seed: int = 0

    command: ClassVar[str] = "launch.evaluate"

    def __post_init__(self) -> None:
        labels = [source.label for source in self.models]
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"an evaluation needs models of different labels, it has {labels}")
        shown = (p for one in self.measurements.values() for p in one.presentations)
        drawn = {p.metric for p in shown if p.kind in DRAWN}
        for figure in self.document.figures if self.document else ():
            if unknown := sorted({*figure.metrics} - drawn):
                raise ValueError(
                    f"no measurement draws {unknown}, of the figure {figure.path}; there are {sorted(drawn)}"
                )

    @property
    def active(self) -> dict[str, Evaluator]:
        """The measurements that measure something."""
        return {name: one for name, one in self.measurements.items() if one.active}
