"""Text in, text out: a model folder continues prompts with its own tokenizer, in a few compiled shapes."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.generate import Generation, decode
from hypenet_jax.model.prefill import left_padded, prefill, start_context
from hypenet_jax.model.sampling import GREEDY, Sampling
from hypenet_jax.run.prompts import Completion, Prompt
from hypenet_jax.run.speed import Speed
from hypenet_jax.weights import load_hf
from hypenet_jax.weights.hf_config import read_json

# Prompts are padded to a power of two, this at least: a file of prompts meets a handful of widths.
SHORTEST = 32
# Prompts of one batch hold no more tokens than this together, or are one prompt.
TOKENS_AT_ONCE = 2**16


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model, its tokenizer, and how both are used.

    Attributes:
      end_ids: tokens that end a text.
      max_length: most tokens of a prompt and its continuation together; None for no limit.
      seed: prompt i draws with fold_in(key(seed), i), whatever it is batched with.
      batch: prompts that are continued at once.
    """

    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    max_new_tokens: int
    max_length: int | None
    sampling: Sampling
    seed: int
    batch: int


def open_writer(
    folder: pathlib.Path,
    *,
    max_new_tokens: int,
    max_length: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    batch: int = 8,
    dtype: str | None = None,
) -> Writer:
    """Reads a model folder: weights, tokenizer, end tokens.

    Raises:
      CheckpointError, FileNotFoundError, ValueError: no such model or tokenizer, or settings that mean nothing.
    """
    if max_new_tokens < 1 or batch < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and batch {batch} must be at least 1")
    tokenizer = load_tokenizer(folder)
    decoder, params = load_hf(folder, dtype=dtype)
    ends = end_ids(folder) or (tokenizer.end_id,)
    return Writer(
        decoder, params, tokenizer, ends, max_new_tokens, max_length, sampling, seed, batch
    )


def end_ids(folder: pathlib.Path) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: one id or a list; none where neither has it."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def complete(
    writer: Writer,
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
      Completions by the index of their prompt, as batches end: first errors, then the shortest prompts.
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
    good = {index: ids for index, ids in tokens.items() if index not in refused}
    for width, rows in _batches({index: len(ids) for index, ids in good.items()}, writer.batch):
        written = _write(writer, {row: good[row] for row in rows}, width, speed, on_text)
        yield {
            row: _completion(writer, _text_of(prompts[row]), written, i)
            for i, row in enumerate(rows)
        }


def _text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else ""


def _objection(writer: Writer, prompt: Prompt, tokens: np.ndarray) -> str | None:
    """Why a prompt cannot be continued, or None."""
    if isinstance(prompt, ValueError):
        return str(prompt)
    if not len(tokens):
        return "the prompt is empty; give at least one token"
    vocabulary, length = writer.decoder.config.vocab_size, len(tokens) + writer.max_new_tokens
    if tokens.max() >= vocabulary:
        return (
            f"the tokenizer gives id {tokens.max()}, the model has {vocabulary}: "
            "it is the tokenizer of another model"
        )
    if writer.max_length is not None and length > writer.max_length:
        return (
            f"{len(tokens)} tokens of prompt and {writer.max_new_tokens} new ones "
            f"exceed the maximum length {writer.max_length}"
        )
    return None


def _batches(lengths: dict[int, int], batch: int) -> Iterator[tuple[int, list[int]]]:
    """Each width and the prompts that are padded to it, at most `batch` and TOKENS_AT_ONCE at once."""
    widths = {index: _power_of_two(max(length, SHORTEST)) for index, length in lengths.items()}
    for width in sorted(set(widths.values())):
        rows = [index for index in lengths if widths[index] == width]
        size = max(1, min(batch, TOKENS_AT_ONCE // width))
        for first in range(0, len(rows), size):
            yield width, rows[first : first + size]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _write(
    writer: Writer,
    tokens: dict[int, np.ndarray],
    width: int,
    speed: Speed,
    on_text: Callable[[str], None] | None,
) -> Generation:
    """Continues the prompts of one batch. Copies of the last one fill it to a power of two."""
    size = min(_power_of_two(len(tokens)), writer.batch)
    rows = [*tokens, *[list(tokens)[-1]] * (size - len(tokens))]
    padded, real = left_padded([tokens[row] for row in rows], width)
    with speed.prefill.timed():
        context = start_context(writer.decoder, len(rows), width + writer.max_new_tokens)
        context = prefill(writer.decoder, writer.params, context, padded, segment_ids=real)
        jax.block_until_ready(context)
    with speed.decode.timed():
        root, index = jax.random.key(writer.seed), jnp.asarray(rows)
        generation = decode(
            writer.decoder,
            writer.params,
            context,
            max_new_tokens=writer.max_new_tokens,
            sampling=writer.sampling,
            stop_token=writer.end_ids,
            key=jax.vmap(jax.random.fold_in, (None, 0))(root, index),
            on_tokens=None if on_text is None else _Stream(writer, on_text),
        )
    speed.prefill.tokens += sum(map(len, tokens.values()))
    speed.decode.tokens += int(generation.lengths[: len(tokens)].sum())
    return generation


def _completion(writer: Writer, prompt: str, written: Generation, row: int) -> Completion:
    new = written.tokens[row, : written.lengths[row]].tolist()
    ended = bool(new) and new[-1] in writer.end_ids
    error = "the model computes NaN logits" if written.broken[row] else None
    return Completion(prompt, _text(writer, new), len(new), ended, error)


def _text(writer: Writer, tokens: Sequence[int]) -> str:
    return writer.tokenizer.decode([token for token in tokens if token not in writer.end_ids])


class _Stream:
    """Hands on new text once its last character is whole: a character may take several tokens."""

    def __init__(self, writer: Writer, on_text: Callable[[str], None]) -> None:
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
