"""Text in, text out: a model folder continues prompts with its own tokenizer, in a few compiled shapes."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, Batch, TokenRow, batches_by_width
from hypenet_jax.generation.completions import Completion, Prompt
from hypenet_jax.generation.decode import Generation, decode
from hypenet_jax.generation.model import check_memory
from hypenet_jax.generation.prefill import prefill, start_context, unsupported_reason
from hypenet_jax.generation.sampling import GREEDY, Sampling
from hypenet_jax.generation.throughput import Speed
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.runtime import reason
from hypenet_jax.weights import load_hf, read_config
from hypenet_jax.weights.hf_config import read_json


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """A model, its tokenizer, and how both are used.

    Attributes:
      end_ids: tokens that end a text.
      max_length: most tokens of a prompt and its continuation together; None for no limit.
      seed: prompt i draws with fold_in(key(seed), i), whatever it is batched with.
      tokens_per_batch: of the prompts that are continued at once, or one longer prompt.
    """

    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    max_new_tokens: int
    max_length: int | None
    sampling: Sampling
    seed: int
    tokens_per_batch: int


def open_generator(
    folder: pathlib.Path,
    *,
    max_new_tokens: int,
    max_length: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    dtype: str | None = None,
) -> TextGenerator:
    """Reads a model folder: weights, tokenizer, end tokens.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: no such model or tokenizer, or settings that mean nothing.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} writes nothing; use at least 1")
    if max_length is not None and max_length <= max_new_tokens:
        raise ValueError(
            f"max_length {max_length} has no room for a prompt and {max_new_tokens} new tokens; use at least "
            f"{max_new_tokens + 1}, or fewer new tokens"
        )
    read_config(folder)
    tokenizer = load_tokenizer(folder)
    decoder, params = load_hf(folder, dtype=dtype)
    ends = end_ids(folder) or (tokenizer.end_id,)
    asked = (max_new_tokens, max_length, sampling, seed, tokens_per_batch)
    return TextGenerator(decoder, params, tokenizer, ends, *asked)


def end_ids(folder: pathlib.Path) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: one id or a list; none where neither has it."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def complete(
    writer: TextGenerator,
    prompts: Sequence[Prompt],
    speed: Speed,
    *,
    skip: Collection[int] = (),
    on_text: Callable[[str], None] | None = None,
) -> Iterator[dict[int, Completion]]:
    """Continues every prompt, each as if alone; what cannot be continued has an error instead.

    Args:
      speed: is added to.
      skip: indices of prompts to leave out.
      on_text: is given the text of a single prompt as it is written.
    Yields:
      Completions by the index of their prompt, as batches end: errors first, then the longest prompts.
    """
    wanted = [index for index in range(len(prompts)) if index not in skip]
    texts = [_text_of(prompts[index]) for index in wanted]
    tokens = dict(zip(wanted, writer.tokenizer.encode_all(texts), strict=True))
    errors = {index: _objection(writer, prompts[index], tokens[index]) for index in wanted}
    refused = {
        index: Completion(_text_of(prompts[index]), error=error)
        for index, error in errors.items()
        if error is not None
    }
    if refused:
        yield refused
    good = [index for index in wanted if index not in refused]
    rows = [tokens[index] for index in good]
    for batch in batches_by_width([len(row) for row in rows], writer.tokens_per_batch):
        indices = [good[row] for row in batch.rows]
        texts = [_text_of(prompts[index]) for index in indices]
        try:
            written = _write(writer, batch, rows, good, speed, on_text)
            done = [_completion(writer, text, written, row) for row, text in enumerate(texts)]
        except (MemoryError, jax.errors.JaxRuntimeError) as error:  # the device is too small
            done = [Completion(text, error=reason(error)) for text in texts]
        yield dict(zip(indices, done, strict=True))


def _text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else ""


def _objection(writer: TextGenerator, prompt: Prompt, tokens: np.ndarray) -> str | None:
    """Why a prompt cannot be continued, or None."""
    if isinstance(prompt, ValueError):
        return str(prompt)
    vocabulary = writer.decoder.config.vocab_size
    return unsupported_reason(tokens, vocabulary, writer.max_new_tokens, writer.max_length)


def _write(
    writer: TextGenerator,
    batch: Batch,
    rows: Sequence[TokenRow],
    draws: Sequence[int],
    speed: Speed,
    on_text: Callable[[str], None] | None,
) -> Generation:
    """Continues the rows of one batch, which draw by the numbers of `draws`."""
    tokens, real = batch.stack(rows)
    check_memory(writer.decoder, batch.size, batch.width + writer.max_new_tokens)
    with speed.prefill.timed():
        context = start_context(writer.decoder, batch.size, batch.width + writer.max_new_tokens)
        context = prefill(writer.decoder, writer.params, context, tokens, segment_ids=real)
        jax.block_until_ready(context)
    with speed.decode.timed():
        generation = decode(
            writer.decoder,
            writer.params,
            context,
            max_new_tokens=writer.max_new_tokens,
            sampling=writer.sampling,
            stop_token=writer.end_ids,
            key=batch.keys(writer.seed, draws),
            on_tokens=None if on_text is None else _Stream(writer, on_text),
        )
    speed.prefill.tokens += sum(len(rows[row]) for row in batch.rows)
    speed.decode.tokens += int(generation.lengths[: len(batch.rows)].sum())
    return generation


def _completion(writer: TextGenerator, prompt: str, written: Generation, row: int) -> Completion:
    new = written.tokens[row, : written.lengths[row]].tolist()
    ended = bool(new) and new[-1] in writer.end_ids
    error = "the model computes NaN logits" if written.broken[row] else None
    return Completion(prompt, _text(writer, new), len(new), ended, error)


def _text(writer: TextGenerator, tokens: Sequence[int]) -> str:
    return writer.tokenizer.decode([token for token in tokens if token not in writer.end_ids])


class _Stream:
    """Hands on new text once its last character is whole: a character may take several tokens."""

    def __init__(self, writer: TextGenerator, on_text: Callable[[str], None]) -> None:
        self.writer, self.on_text = writer, on_text
        self.tokens: list[int] = []
        self.told = 0

    def __call__(self, new: Sequence[np.ndarray]) -> None:
        self.tokens += new[0].tolist()
        text, full = _text(self.writer, self.tokens), self.writer.max_new_tokens
        last = len(self.tokens) == full or bool({*self.tokens[-1:]} & {*self.writer.end_ids})
        if last or not text.endswith("\ufffd"):
            self.on_text(text[self.told :])
            self.told = len(text)
