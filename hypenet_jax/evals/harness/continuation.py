"""What a model writes after given prompts, until a text, an end token or a number of tokens."""

import dataclasses
from collections.abc import Iterator

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, Batch, TokenRow, batches_by_width
from hypenet_jax.generation.decode import decode, refuse_nan
from hypenet_jax.generation.prefill import prefill, start_context
from hypenet_jax.generation.sampling import Sampling
from hypenet_jax.model.decoder import Decoder

# Tokens written between two looks for a stop text.
SPAN = 32


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Asks for up to `max_new_tokens` tokens after each prompt.

    Attributes:
      prompts: token ids, at least one each.
      indices: prompt i draws with fold_in(key(seed), indices[i]), whatever it is batched with.
      until: a row ends once its text holds one of these.
      end_ids: a row ends with one of these tokens.
    """

    prompts: tuple[TokenRow, ...]
    indices: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    until: tuple[str, ...]
    end_ids: tuple[int, ...]
    seed: int


def continuations(
    subject: EvalModel,
    tokenizer: Tokenizer,
    asked: Continuations,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, list[int]]]:
    """Index of a prompt, and its new tokens, in the order in which they are found.

    They may go on for a little after the first stop text, but not after an end token, which is among them.

    Raises:
      FloatingPointError: the model computes NaN.
    """
    for batch in batches_by_width([len(row) for row in asked.prompts], tokens_per_batch):
        yield from zip(batch.rows, _write(subject, tokenizer, asked, batch), strict=True)


def _write(
    subject: EvalModel, tokenizer: Tokenizer, asked: Continuations, batch: Batch
) -> list[list[int]]:
    decoder, params = subject.decoder, subject.params
    assert isinstance(decoder, Decoder)
    spans = -(-asked.max_new_tokens // SPAN)
    context = start_context(decoder, batch.size, batch.width + spans * SPAN)
    tokens, real = batch.stack(asked.prompts)
    context = prefill(decoder, params, context, tokens, segment_ids=real)
    written: list[list[int]] = [[] for _ in batch.rows]
    keys = batch.keys(asked.seed, asked.indices)
    for _ in range(spans):
        new = decode(
            decoder,
            params,
            context,
            max_new_tokens=SPAN,
            sampling=asked.sampling,
            stop_token=asked.end_ids,
            key=keys,
        )
        refuse_nan(new)
        context = new.context
        for row, more, length in zip(written, new.tokens, new.lengths, strict=False):
            if not _has_ended(tokenizer, row, asked):
                row += more[:length].tolist()
        if all(_has_ended(tokenizer, row, asked) for row in written):
            break
    return [row[: asked.max_new_tokens] for row in written]


def _has_ended(tokenizer: Tokenizer, tokens: list[int], asked: Continuations) -> bool:
    """An ended row stays as it is while the others of its batch go on."""
    if tokens and tokens[-1] in asked.end_ids:
        return True
    text = tokenizer.backend.decode(tokens, skip_special_tokens=True)
    return any(stop in text for stop in asked.until)
