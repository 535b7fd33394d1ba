"""How good one model is: perplexity, needles, tasks. What cannot be measured is a row "failed" and ends nothing."""

import dataclasses
import functools
import hashlib
import pathlib

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from hypenet_jax import runtime
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.evals import EvalModel, Report, Row, needle_accuracy, perplexity_by_length
from hypenet_jax.evals.cache import attempt
from hypenet_jax.evals.config import EvaluationConfig, ModelSource
from hypenet_jax.evals.perplexity import perplexity_by_position, perplexity_of_text
from hypenet_jax.evals.ruler.cache import cached_questions
from hypenet_jax.evals.ruler.scoring import task_scores
from hypenet_jax.evals.ruler.text import Haystacks, sentences_of
from hypenet_jax.evals.text import text_tokens
from hypenet_jax.fingerprint import digest
from hypenet_jax.generation.model import model_fingerprint
from hypenet_jax.generation.text_generator import end_ids
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.weights import load_hf
from hypenet_jax.weights.hf_fields import logit_scale_from_hf

# Text read for a suite: windows are spread over the longest context and this many tokens.
TEXT_TOKENS = 2**20


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A model with what is read to it.

    Attributes:
      ends: tokens that end what it writes.
    """

    subject: EvalModel
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    text: Int[np.ndarray, " n"]

    @functools.cached_property
    def haystacks(self) -> Haystacks:
        """The text as sentences, to hide needles in."""
        sentences = sentences_of(self.tokenizer.decode(self.text))
        return Haystacks(self.tokenizer, self.tokenizer.encode_all(sentences))

    @functools.cached_property
    def model_fingerprint(self) -> str:
        """Of all that the model's answers depend on, whatever is read to it."""
        decoder, params = self.subject.decoder, self.subject.params
        return model_fingerprint(decoder, params, self.tokenizer.fingerprint, self.ends)

    @property
    def fingerprint(self) -> str:
        """Of all that the model's numbers depend on, what is read to it included."""
        return digest([self.model_fingerprint, hashlib.sha256(self.text.tobytes()).hexdigest()])

    def scaled(self, logit_scale: str | float | None) -> "Entrant":
        """The same with another `attn_logits_scaling`, see `scaled`."""
        return dataclasses.replace(self, subject=scaled(self.subject, logit_scale))


def scaled(subject: EvalModel, logit_scale: str | float | None) -> EvalModel:
    """The same with another `attn_logits_scaling`, written as in a config.json; "stored" changes nothing."""
    if logit_scale == "stored":
        return subject
    assert isinstance(subject.decoder, Decoder)
    config = with_logit_scale(subject.decoder.config, logit_scale_from_hf(logit_scale))
    return dataclasses.replace(subject, decoder=subject.decoder.clone(config=config))


def open_model(config: EvaluationConfig, one: ModelSource, mesh: Mesh) -> EvalModel:
    """The model of a folder.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: no model, or a scale that means nothing.
    """
    decoder, params = load_hf(pathlib.Path(one.folder), dtype=config.dtype, mesh=mesh)
    return scaled(EvalModel(one.label, decoder, params), one.logit_scale)


def open_entrant(config: EvaluationConfig, one: ModelSource, mesh: Mesh) -> Entrant:
    """The model of a folder with its tokenizer, and as much of the text as the longest context needs.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: no model, no tokenizer, no text, or a scale that means nothing.
      ProcessesDiffer: the processes have different texts or tokenizers.
    """
    folder = pathlib.Path(one.folder)
    tokenizer = load_tokenizer(folder)
    lengths = (*config.perplexity.lengths, *config.ruler.lengths)
    lengths += () if config.needle is None else config.needle.lengths
    text = text_tokens(config.text, tokenizer, max(lengths, default=0) + TEXT_TOKENS)
    runtime.check_agreement(text=hashlib.sha256(text.tobytes()).hexdigest())
    ends = end_ids(folder) or (tokenizer.end_id,)
    return Entrant(open_model(config, one, mesh), tokenizer, ends, text)


def perplexities(config: EvaluationConfig, entrant: Entrant) -> Report:
    """Perplexity by context length, by position, and of a sliding window, as far as they are asked for."""
    asked, subject, text = config.perplexity, entrant.subject, entrant.text
    spare = len(text) - (asked.windows - 1) * asked.targets
    # Targets are the same for all lengths that the text can fill; each of the others fails by itself.
    groups = [tuple(length for length in asked.lengths if length <= spare)]
    groups += [(length,) for length in asked.lengths if length > spare]
    report = Report()
    for lengths in filter(None, groups):
        report += perplexity_at(config, entrant, lengths)
    if asked.position_length is not None:
        length, windows = asked.position_length, asked.windows
        by_position = functools.partial(
            perplexity_by_position, subject, text, length, num_windows=windows
        )
        report += attempt(subject.name, "perplexity_by_position", length, by_position)
    if asked.sliding_length is not None:
        length = asked.sliding_length
        sliding = functools.partial(perplexity_of_text, subject, text, length, stride=asked.stride)
        report += attempt(subject.name, "perplexity_sliding", length, sliding)
    return report


def perplexity_at(config: EvaluationConfig, entrant: Entrant, lengths: tuple[int, ...]) -> Report:
    """Perplexity of the same final targets at these context lengths."""
    asked = config.perplexity
    measured = functools.partial(
        perplexity_by_length,
        entrant.subject,
        entrant.text,
        lengths,
        num_windows=asked.windows,
        num_targets=asked.targets,
    )
    return attempt(entrant.subject.name, "perplexity", max(lengths), measured)


def needles(config: EvaluationConfig, entrant: Entrant, length: int) -> Report:
    """Accuracy of catalogue needles at one context length."""
    asked = config.needle
    if asked is None:
        raise ValueError("the suite names no catalogue of needles")
    measured = functools.partial(
        needle_accuracy,
        entrant.subject,
        asked.catalogue,
        entrant.text,
        [length],
        num_needles=asked.needles,
        count=asked.count(length),
        seed=config.seed,
    )
    return attempt(entrant.subject.name, "needle", length, measured)


def tasks(config: EvaluationConfig, entrant: Entrant, length: int) -> Report:
    """Every task at one context length, and "ruler_mean" where all were measured."""
    asked, name, report = config.ruler, entrant.subject.name, Report()

    def scores(task: str) -> Report:
        made = cached_questions(
            task,
            entrant.haystacks,
            length,
            count=asked.samples,
            seed=config.seed,
            folder=asked.cache,
        )
        return task_scores(
            entrant.subject, entrant.tokenizer, task, made, length, stop=entrant.ends
        )

    for task in asked.tasks:
        report += attempt(name, task, length, functools.partial(scores, task))
    values = [row.value for row in report.select("ruler").rows]
    if not values or len(values) < len(asked.tasks):
        return report
    return report.add(Row("ruler_mean", name, sum(values) / len(values), len(values), length))
