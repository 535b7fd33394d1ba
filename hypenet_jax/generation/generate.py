"""Prefill, then decode: a batch of prompts as it is, or prompts of any lengths in batches, each as if alone."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray

from hypenet_jax.axes import Params, Tokens
from hypenet_jax.explicit_axes import on_explicit_mesh_of
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, TokenRow, batches_by_width
from hypenet_jax.generation.decode import GREEDY, OnTokens, Sampling, check_decoding, decode
from hypenet_jax.generation.model import check_memory
from hypenet_jax.generation.prefill import check_tokens, prefill, start_context
from hypenet_jax.generation.throughput import Throughput
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.stacking import unstack_layers

OnRows: TypeAlias = Callable[[Sequence[int], Sequence[np.ndarray]], bool | None]
"""Takes the indices of the prompts of a batch and the new tokens of each; True ends the batch."""


def generate(
    decoder: Decoder,
    params: Params,
    prompts: Tokens | Int[np.ndarray, "B T"],
    *,
    max_new_tokens: int,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
    sampling: Sampling = GREEDY,
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: OnTokens | None = None,
) -> Int[np.ndarray, "B M"]:
    """Up to `max_new_tokens` new tokens after each prompt: `prefill`, then `decode`.

    Args:
      params: in either grouping of the layers.
      prompts: token ids; rows of different lengths are padded on either side.
      segment_ids: 0 where a prompt is padded; None where none is. Of several documents in a row the last is continued;
        `unpacked` gives each a row of its own.
      sampling, stop_token, key, on_tokens: see `decode`.
    Raises:
      ValueError: an empty prompt, nothing to write, token ids outside the vocabulary, or draws without a key.
      FloatingPointError: the model computes NaN.
    """
    check_decoding(max_new_tokens, sampling, key)
    batch, time = prompts.shape
    with on_explicit_mesh_of(params):
        context = start_context(decoder, batch, time + max_new_tokens)
        generation = decode(
            decoder,
            params,
            prefill(decoder, params, context, prompts, segment_ids=segment_ids),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_token=stop_token,
            key=key,
            on_tokens=on_tokens,
        )
    rows = np.flatnonzero(generation.broken).tolist()
    if rows:
        raise FloatingPointError(f"the model computes NaN logits in rows {rows}")
    return np.asarray(generation.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How prompts are continued.

    Attributes:
      max_new_tokens: most tokens after each prompt.
      max_length: most tokens of a prompt and its continuation together; None for no limit.
      stop_tokens: a continuation ends with one of these.
      seed: prompt i draws with fold_in(key(seed), i), whatever it is batched with.
      tokens_per_batch: of the prompts that are continued at once, or one longer prompt.
    """

    max_new_tokens: int
    max_length: int | None = None
    sampling: Sampling = GREEDY
    stop_tokens: tuple[int, ...] = ()
    seed: int = 0
    tokens_per_batch: int = TOKENS_PER_BATCH

    def __post_init__(self) -> None:
        check_decoding(self.max_new_tokens)
        if self.max_length is not None and self.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_length {self.max_length} has no room for a prompt and {self.max_new_tokens} new tokens; "
                f"use at least {self.max_new_tokens + 1}, or fewer new tokens"
            )


@dataclasses.dataclass(frozen=True)
class Continuation:
    """New tokens of one prompt, a stop token included; `error` is why there are none, or why they end early."""

    tokens: Int[np.ndarray, " _"]
    error: Exception | None = None


def generate_batches(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[TokenRow],
    config: GenerationConfig,
    *,
    indices: Sequence[int] | None = None,
    width: int | None = None,
    on_tokens: OnRows | None = None,
    throughput: Throughput | None = None,
) -> Iterator[dict[int, Continuation]]:
    """Continues every prompt as if alone; what cannot be continued has an error, and the others go on.

    Args:
      indices: prompt i draws as number indices[i]; None: as number i.
      width: to which all prompts are padded; None: a power of two.
      on_tokens: called every few tokens of a batch; the batch ends when it returns True.
      throughput: is added to.
    Yields:
      Continuations by the index of their prompt, as batches end: first ValueErrors of prompts that are empty, too long
      or of unknown token ids, then the longest prompts. Other errors: FloatingPointError where logits are NaN;
      MemoryError or JaxRuntimeError for all prompts of a batch that the device has no room for.
    """
    refused: dict[int, Continuation] = {}
    for i, prompt in enumerate(prompts):
        try:
            check_prompt(prompt, decoder.config.vocab_size, config)
        except ValueError as error:
            refused[i] = _failed(error)
    if refused:
        yield refused
    good = [i for i in range(len(prompts)) if i not in refused]
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    numbers = range(len(prompts)) if indices is None else indices
    throughput = Throughput() if throughput is None else throughput
    widths = [len(prompts[i]) for i in good]
    for batch in batches_by_width(widths, config.tokens_per_batch, width=width):
        batch = dataclasses.replace(batch, rows=tuple(good[row] for row in batch.rows))
        rows, capacity = batch.rows, batch.width + config.max_new_tokens
        tokens, segment_ids = batch.stack(prompts)
        try:
            check_memory(decoder, batch.size, capacity)
            with on_explicit_mesh_of(params), throughput.prefill.timed():
                context = start_context(decoder, batch.size, capacity)
                context = prefill(decoder, params, context, tokens, segment_ids=segment_ids)
                jax.block_until_ready(context)
            with on_explicit_mesh_of(params), throughput.decode.timed():
                result = decode(
                    *(decoder, params, context),
                    max_new_tokens=config.max_new_tokens,
                    sampling=config.sampling,
                    stop_token=config.stop_tokens,
                    key=batch.keys(config.seed, numbers),
                    on_tokens=on_tokens
                    and (lambda new, rows=rows: on_tokens(rows, new[: len(rows)])),
                )
        except (MemoryError, jax.errors.JaxRuntimeError) as error:  # the device is too small
            yield dict.fromkeys(rows, _failed(error))
            continue
        written, lengths, broken = map(np.asarray, (result.tokens, result.lengths, result.broken))
        throughput.prefill.tokens += sum(len(prompts[row]) for row in rows)
        throughput.decode.tokens += int(lengths[: len(rows)].sum())
        nan = FloatingPointError("the model computes NaN logits")
        yield {
            row: Continuation(written[i, : lengths[i]], nan if broken[i] else None)
            for i, row in enumerate(rows)
        }


def check_prompt(prompt: TokenRow, vocabulary: int, config: GenerationConfig) -> None:
    """Raises ValueError: a prompt that is empty, too long or of unknown token ids."""
    new, longest = config.max_new_tokens, config.max_length
    if not len(prompt):
        raise ValueError("the prompt is empty; give at least one token")
    check_tokens(prompt, vocabulary)
    if longest is not None and len(prompt) + new > longest:
        raise ValueError(
            f"{len(prompt)} tokens of prompt and {new} new ones "
            f"exceed the maximum length {longest}; shorten the prompt, or allow more"
        )


def _failed(error: Exception) -> Continuation:
    return Continuation(np.zeros(0, np.int32), error)
