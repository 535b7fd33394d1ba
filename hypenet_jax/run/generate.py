"""Text in, text out: a model folder continues prompts with its own tokenizer, in a few compiled shapes."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.generate import Sampling, decode, prefill, start_context
from hypenet_jax.weights import load_hf
from hypenet_jax.weights.hf_config import read_json

# Prompts are padded to a power of two, this at least: a file of prompts meets a handful of widths.
SHORTEST = 32
GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model, its tokenizer, and how both are used.

    Attributes:
      end_ids: tokens that end a text.
      seed: prompt i draws with fold_in(key(seed), i), whatever it is batched with.
      batch: prompts that are continued at once.
    """

    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """`text` continues `prompt`; `ended`: with an end token, which is not part of the text."""

    prompt: str
    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass
class Speed:
    """Real tokens and wall seconds of reading and of writing, compilation included."""

    read: int = 0
    read_seconds: float = 0.0
    written: int = 0
    write_seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"prefill {self.read} tokens, {self.read / max(self.read_seconds, 1e-9):.1f} tokens/s; "
            f"decode {self.written} tokens, {self.written / max(self.write_seconds, 1e-9):.1f} "
            "tokens/s (compilation included)"
        )


def open_writer(
    folder: pathlib.Path,
    *,
    max_new_tokens: int,
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
    decoder, params = load_hf(folder, dtype=dtype)
    tokenizer = load_tokenizer(folder)
    ends = end_ids(folder) or (tokenizer.end_id,)
    return Writer(decoder, params, tokenizer, ends, max_new_tokens, sampling, seed, batch)


def end_ids(folder: pathlib.Path) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: one id or a list; none where neither has it."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def read_prompts(path: pathlib.Path) -> list[str]:
    """One prompt per line, or from a .jsonl file the "prompt" of each line; blank lines are passed over.

    Raises:
      ValueError: a line of JSON without a text named "prompt".
    """
    numbered = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if path.suffix not in (".jsonl", ".json"):
        return [line for _, line in lines]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise ValueError(f'{where}: no JSON object with a text "prompt"')
    return prompt


def complete(
    writer: Writer,
    prompts: Sequence[str],
    speed: Speed,
    on_text: Callable[[str], None] | None = None,
) -> list[Completion]:
    """Continues every prompt; each result is that of the prompt alone.

    Args:
      speed: is added to.
      on_text: is given the text of a single prompt as it is written.
    Raises:
      ValueError: an empty prompt, or ids of the tokenizer that the model does not have.
    """
    tokens = writer.tokenizer.encode_all(prompts)
    empty = [index + 1 for index, ids in enumerate(tokens) if len(ids) == 0]
    if empty:
        raise ValueError(f"prompts {empty} are empty; give at least one token each")
    done: dict[int, Completion] = {}
    for width, rows in _batches([len(ids) for ids in tokens], writer.batch):
        written = _write(writer, [tokens[row] for row in rows], rows, width, speed, on_text)
        for row, new in zip(rows, written, strict=True):
            done[row] = _completion(writer, prompts[row], new)
    return [done[row] for row in range(len(prompts))]


def _batches(lengths: Sequence[int], batch: int) -> Iterator[tuple[int, list[int]]]:
    """Each width and the prompts that are padded to it, at most `batch` at once."""
    widths = np.asarray([_power_of_two(max(length, SHORTEST)) for length in lengths], int)
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width).tolist()
        for first in range(0, len(rows), batch):
            yield int(width), rows[first : first + batch]


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _write(
    writer: Writer,
    tokens: Sequence[np.ndarray],
    rows: Sequence[int],
    width: int,
    speed: Speed,
    on_text: Callable[[str], None] | None,
) -> list[np.ndarray]:
    """New tokens of each prompt, without fillers. Copies of the last one fill the batch to a power of two."""
    size = min(_power_of_two(len(rows)), writer.batch)
    order = [*range(len(rows)), *[len(rows) - 1] * (size - len(rows))]
    padded = np.stack([np.pad(tokens[i], (width - len(tokens[i]), 0)) for i in order])
    real = np.stack([np.arange(width) >= width - len(tokens[i]) for i in order]).astype(np.int32)
    started = time.perf_counter()
    context = start_context(writer.decoder, size, width + writer.max_new_tokens)
    context = prefill(writer.decoder, writer.params, context, padded, segment_ids=real)
    jax.block_until_ready(context)
    read = time.perf_counter()
    root, index = jax.random.key(writer.seed), jnp.asarray([rows[i] for i in order])
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
    lengths = generation.lengths[: len(rows)]
    speed.read += sum(map(len, tokens))
    speed.read_seconds += read - started
    speed.written += int(lengths.sum())
    speed.write_seconds += time.perf_counter() - read
    return [new[:length] for new, length in zip(generation.tokens, lengths, strict=False)]


def _completion(writer: Writer, prompt: str, new: np.ndarray) -> Completion:
    ended = int(new[-1]) in writer.end_ids
    return Completion(prompt, _text(writer, new), len(new), ended)


def _text(writer: Writer, tokens: Sequence[int] | np.ndarray) -> str:
    shown = [int(token) for token in tokens if int(token) not in writer.end_ids]
    return writer.tokenizer.decode(shown)


class _Stream:
    """Hands on new text once its last character is whole: a character may take several tokens."""

    def __init__(self, writer: Writer, on_text: Callable[[str], None]) -> None:
        self.writer, self.on_text = writer, on_text
        self.tokens: list[int] = []
        self.told = 0

    def __call__(self, new: Sequence[np.ndarray]) -> None:
        self.tokens += new[0].tolist()
        text = _text(self.writer, self.tokens)
        last = (
            len(self.tokens) == self.writer.max_new_tokens or self.tokens[-1] in self.writer.end_ids
        )
        if last or not text.endswith("\ufffd"):
            self.on_text(text[self.told :])
            self.told = len(text)


def show(completions: Sequence[Completion], out: pathlib.Path | None) -> None:
    """Prints texts, or writes one JSON object per line."""
    if out is None:
        print("\n\n".join(one.prompt + one.text for one in completions))
        return
    lines = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in completions]
    out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def converse(writer: Writer, speed: Speed) -> None:
    """Continues each line of standard input as it comes, streaming; ends with the input."""
    print("> ", end="", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip():
            prompt = [line.rstrip("\n")]
            complete(writer, prompt, speed, on_text=lambda text: print(text, end="", flush=True))
            print()
        print("> ", end="", file=sys.stderr, flush=True)
