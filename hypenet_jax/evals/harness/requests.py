"""What the harness asks, as token ids: likelihoods and continuations. All processes respond to a request together."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.language.predictions import likelihoods
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import TokenRow
from hypenet_jax.generation.generate import GenerationConfig, generate_batches
from hypenet_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class LikelihoodRequest:
    """Asks for the likelihoods of the last `counted[i]` tokens of `rows[i]`; see `likelihoods`."""

    rows: tuple[TokenRow, ...]
    counted: tuple[int, ...]

    def responses(self, model: EvalModel) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Index of a row, its log p and whether the counted tokens are the likeliest, as batches end."""
        return likelihoods(model, self.rows, self.counted)


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """Asks for the continuations of some prompts.

    Attributes:
      prompts: token ids, at least one each.
      indices: prompt i draws as number indices[i], whatever it is batched with.
      config: how they are continued.
      until: a row ends once its text holds one of these.
    """

    prompts: tuple[TokenRow, ...]
    indices: tuple[int, ...]
    config: GenerationConfig
    until: tuple[str, ...]

    def responses(self, model: EvalModel) -> Iterator[tuple[int, list[int]]]:
        """Index of a prompt, and its new tokens, as batches end.

        They may go on for a little after the first stop text, but not after an end token, which is among them.

        Raises:
          FloatingPointError, MemoryError, JaxRuntimeError, ValueError: a prompt could not be continued.
        """
        assert isinstance(model.decoder, Decoder)
        assert model.tokenizer is not None
        tokenizer = model.tokenizer
        written: list[list[int]] = [[] for _ in self.prompts]

        def collect(rows: Sequence[int], new: Sequence[np.ndarray]) -> bool:
            for row, tokens in zip(rows, new, strict=True):
                if not self._has_ended(tokenizer, written[row]):
                    written[row] += tokens.tolist()
            return all(self._has_ended(tokenizer, written[row]) for row in rows)

        batches = generate_batches(
            *(model.decoder, model.params, self.prompts, self.config),
            indices=self.indices,
            on_tokens=collect,
        )
        for batch in batches:
            for row, result in batch.items():
                if result.error is not None:
                    raise result.error
                yield row, written[row]

    def _has_ended(self, tokenizer: Tokenizer, tokens: list[int]) -> bool:
        """An ended row stays as it is while the others of its batch go on."""
        if tokens and tokens[-1] in self.config.stop_tokens:
            return True
        text = tokenizer.backend.decode(tokens, skip_special_tokens=True)
        return any(stop in text for stop in self.until)


Request = LikelihoodRequest | GenerationRequest
