"""Text in, text out: a model folder continues prompts with its own tokenizer, in a few compiled shapes."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.data.chat import ChatTemplate, Message, chat_template
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.generation.generate import Continuation, GenerationConfig, OnRows, generate_batches
from hypenet_jax.generation.throughput import Throughput
from hypenet_jax.hub import model_folder
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.runtime import reason
from hypenet_jax.weights import CheckpointError, load_hf, read_config
from hypenet_jax.weights.hf_config import read_json

Prompt: TypeAlias = str | tuple[Message, ...] | ValueError
"""A text to continue, a conversation to answer, or why a line of a file is neither."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """`text` continues `prompt`; `ended`: an end token came, left out here; `error`: why there is none or no more.

    The prompt of a conversation is its rendering by the chat template.
    """

    prompt: str
    text: str = ""
    tokens: int = 0
    ended: bool = False
    error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGenerator:
    """A model, its tokenizer, and how prompts are continued.

    Attributes:
      special_tokens: read those that are spelled out in a plain prompt as tokens; in a conversation they always are.
      template_arguments: the chat template's own, such as Qwen3's `enable_thinking`.
    """

    decoder: Decoder
    params: Params
    tokenizer: Tokenizer
    config: GenerationConfig
    special_tokens: bool = False
    template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template; ValueError where the tokenizer has none."""
        return chat_template(self.tokenizer, self.template_arguments)

    def complete(
        self,
        prompts: Sequence[Prompt],
        throughput: Throughput | None = None,
        *,
        skip: Collection[int] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Iterator[dict[int, Completion]]:
        """Continues every prompt, each as if alone; what cannot be continued has an error instead.

        Args:
          throughput: is added to.
          skip: indices of prompts to leave out.
          on_text: is given the text of a single prompt as it is written.
        Yields:
          Completions by the index of their prompt, as batches end: errors first, then the longest prompts.
        """
        texts: dict[int, str] = {}
        unread: dict[int, Completion] = {}
        for i, prompt in enumerate(prompts):
            if i not in skip:
                try:
                    texts[i] = self._rendered(prompt)
                except ValueError as error:
                    unread[i] = Completion("", error=str(error))
        if unread:
            yield unread
        special = [i for i in texts if self.special_tokens or not isinstance(prompts[i], str)]
        plain = sorted(texts.keys() - {*special})
        indices, encode = [*plain, *special], self.tokenizer.encode_all
        tokens = encode([texts[i] for i in plain])
        tokens += encode([texts[i] for i in special], special_tokens=True)
        batches = generate_batches(
            *(self.decoder, self.params, tokens, self.config),
            indices=indices,
            on_tokens=on_text and self.stream(on_text),
            throughput=throughput,
        )
        for batch in batches:
            done = {indices[row]: result for row, result in batch.items()}
            yield {i: self._completion(texts[i], result) for i, result in done.items()}

    def text(self, tokens: Sequence[int]) -> str:
        """The text of new tokens, without end tokens."""
        ends = self.config.stop_tokens
        return self.tokenizer.continuation([token for token in tokens if token not in ends])

    def stream(self, on_text: Callable[[str], None]) -> OnRows:
        """Hands on the new text of a single row once its last character is whole: one may take several tokens."""
        tokens, streamed = [], 0

        def hand_on(rows: Sequence[int], new: Sequence[np.ndarray]) -> None:
            nonlocal streamed
            tokens.extend(new[0].tolist())
            text, ended = self.text(tokens), not {*tokens[-1:]}.isdisjoint(self.config.stop_tokens)
            if ended or len(tokens) == self.config.max_new_tokens or not text.endswith("\ufffd"):
                on_text(text[streamed:])
                streamed = len(text)

        return hand_on

    def _rendered(self, prompt: Prompt) -> str:
        """The text that is read, or a ValueError that says why there is none."""
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt, ValueError):
            raise prompt
        text = self.template.render(prompt, add_generation_prompt=True)
        if prompt[-1]["role"] == "assistant":
            raise ValueError("the last message is the assistant's: nothing is asked; leave it out")
        return text

    def _completion(self, prompt: str, result: Continuation) -> Completion:
        tokens, error = result.tokens.tolist(), result.error
        ended = bool(tokens) and tokens[-1] in self.config.stop_tokens
        plain = isinstance(error, ValueError | FloatingPointError)
        why = error and (str(error) if plain else reason(error))
        return Completion(prompt, self.text(tokens), len(tokens), ended, why)


def open_generator(
    folder: str | os.PathLike[str],
    config: GenerationConfig,
    *,
    dtype: str | None = None,
    **reading: Any,
) -> TextGenerator:
    """Reads a model folder: weights, tokenizer, and the end tokens, which replace `config.stop_tokens`.

    Args:
      folder: a path, or a name in the local cache of Hugging Face (`model_folder`).
      dtype: of weights and computation; None: as stored.
      reading: how prompts are read, as `TextGenerator` has it.
    Raises:
      CheckpointError, FileNotFoundError, ValueError: no such model or tokenizer, or they do not belong together.
    """
    folder = model_folder(folder)
    vocab_size, tokenizer = read_config(folder).vocab_size, load_tokenizer(folder)
    tokenizer.check_fits(vocab_size, str(folder))
    decoder, params = load_hf(folder, dtype=dtype)
    config = dataclasses.replace(config, stop_tokens=end_ids(folder) or (tokenizer.end_id,))
    model = {"decoder": decoder, "params": params, "tokenizer": tokenizer}
    return TextGenerator(**model, config=config, **reading)


def end_ids(folder: pathlib.Path) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, else of config.json: one id or a list; none where neither has it."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            ids = tuple(ids) if isinstance(ids, list) else (ids,)
            if any(type(one) is not int for one in ids):
                raise CheckpointError(f"{path}: eos_token_id must be an id or a list of ids")
            return ids
    return ()
