"""What is measured after a conversion, as values."""

import dataclasses

from hypenet_jax.data.synthetic import Catalogue


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
