"""What is measured of model folders, as values."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import tyro

from hypenet_jax.data.sources import Source
from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.evals.checks import Bound
from hypenet_jax.evals.model import ModelSource
from hypenet_jax.sharding import MeshConfig


def _check_positive(section: Any, *names: str) -> None:
    """Raises ValueError: one of these numbers, or one of several, is below 1."""
    for name in names:
        value = getattr(section, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and number < 1 for number in numbers):
            raise ValueError(f"{name} {value} in {type(section).__name__}; use at least 1")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out text of a prepared corpus, whose tokenizer the models must have."""

    folder: str


@dataclasses.dataclass(frozen=True)
class PerplexityConfig:
    """Perplexities of the text.

    Attributes:
      lengths: context lengths of the perplexity of the same final targets, in ascending order.
      windows, targets: how many windows, and how many final tokens of each count.
      position_length: length of the windows whose perplexity is told by position, in doubling buckets; None: not.
      sliding_length, stride: window and step of the sliding perplexity; None: not.
    """

    lengths: tuple[int, ...] = ()
    windows: int = 16
    targets: int = 64
    position_length: int | None = None
    sliding_length: int | None = None
    stride: int = 512

    def __post_init__(self) -> None:
        _check_positive(
            self, "lengths", "windows", "targets", "position_length", "sliding_length", "stride"
        )


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
    """Needles of a catalogue whose tokens the models were trained on.

    Attributes:
      catalogue: its tokens.
      lengths: context lengths.
      needles: planted in each sequence, one of them asked for.
      sequences: per length, and the fewer of lengths from `long_length` on.
    """

    catalogue: Catalogue
    lengths: tuple[int, ...]
    needles: int
    sequences: int
    long_sequences: int
    long_length: int

    def __post_init__(self) -> None:
        _check_positive(self, "lengths", "needles", "sequences", "long_sequences")

    def count(self, length: int) -> int:
        return self.sequences if length < self.long_length else self.long_sequences


@dataclasses.dataclass(frozen=True)
class RulerConfig:
    """Tasks in the manner of RULER.

    Attributes:
      tasks: names of `hypenet_jax.evals.ruler.tasks.TASKS`.
      lengths: tokens of the question and of what may be written to answer it; none leaves the tasks out.
      samples: questions per task and length.
      cache: folder where the questions are kept; None builds them anew.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    samples: int = 20
    cache: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "lengths", "samples")


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """Tasks of lm-evaluation-harness; needs the extra `eval`.

    Attributes:
      tasks: names of tasks or groups; none leaves the harness out.
      folder: YAML files of further tasks; None: there are no others.
      max_length: tokens a model may read, longer contexts lose their first ones; None: the
        `max_position_embeddings` of its config.json.
      num_fewshot: examples before each question; None as each task says.
      limit: documents of each task; None all.
      chat: prompts become conversations by the tokenizer's chat template.
      cache: folder where the answers of each model, told apart by its contents, are kept; None asks anew.
    """

    tasks: tuple[str, ...] = ()
    folder: str | None = None
    max_length: int | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "max_length", "limit")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A search for the constant a of the log-length logit scale.

    Attributes:
      model: label of the model; None is the last one.
      constants: values of a to try; none leaves the search out. No scaling is always tried as well.
      by: what decides: the score of the needle or of the tasks (their mean), or the perplexity.
      length: context length at which it is measured.
      write: put the best into the `config.json` of the model's folder.
    """

    model: str | None = None
    constants: tuple[float, ...] = ()
    by: Literal["needle", "ruler", "perplexity"] = "perplexity"
    length: int = 8192
    write: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "length")


@dataclasses.dataclass(frozen=True)
class SpeedConfig:
    """Speed and memory.

    Attributes:
      lengths: context lengths; at each a token is written after a full cache.
      longest_prefill: up to here the context is also read; beyond, it would take minutes.
      rounds: runs of each model, in turns.
      chips: whose least times for the same work are reported too, by the names of `evals.floors`.
    """

    lengths: tuple[int, ...] = ()
    longest_prefill: int = 16384
    rounds: int = 5
    chips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_positive(self, "lengths", "rounds")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement and the number that it stands or falls with.

    Attributes:
      text: the statement.
      bound: which row, and what its number must satisfy.
      minus, over: model and length of the row of the same metric that is subtracted, or divided by; None: neither.
    """

    text: str
    bound: Bound
    minus: tuple[str, int] | None = None
    over: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """A Markdown file of the measured tables and what they say of the claims.

    Attributes:
      path: where it goes.
      title, about: its heading, and what stands below it: which models these are and how they were made.
      trained_length: context lengths are also told as multiples of it.
    """

    path: str
    title: str
    about: str
    trained_length: int


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Measurements of models in folders.

    Attributes:
      models: the first is the one that others are compared with.
      out: folder of report.jsonl and index.html.
      text: read for perplexities, and the haystack of tasks that ask for ordinary text.
      ruler, perplexity, race, harness, sweep: sections without lengths (tasks, constants) are left out.
      needle: None leaves needles of a catalogue out.
      claims: statements that the page checks.
      document: a Markdown file to write as well; None: none.
      conversion: folder of the conversion that made the models, whose losses and layer choice the page shows.
      dtype: of weights and computation; None: as stored.
      mesh: sizes of the mesh axes; by default rows are dealt to all devices.
    """

    command: ClassVar[str] = "launch.evaluate"

    models: Annotated[tuple[ModelSource, ...], tyro.conf.Fixed]
    out: str
    text: Annotated[Source | HeldOut, tyro.conf.Fixed]
    ruler: RulerConfig
    perplexity: PerplexityConfig = PerplexityConfig()
    race: SpeedConfig = SpeedConfig()
    harness: HarnessConfig = HarnessConfig()
    sweep: SweepConfig = SweepConfig()
    needle: Annotated[NeedleConfig | None, tyro.conf.Fixed] = None
    claims: Annotated[tuple[Claim, ...], tyro.conf.Fixed] = ()
    document: Annotated[Document | None, tyro.conf.Fixed] = None
    conversion: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    seed: int = 0

    def __post_init__(self) -> None:
        labels = [one.label for one in self.models]
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"a suite needs models of different labels, it has {labels}")
