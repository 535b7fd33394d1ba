"""A model of this project as lm-evaluation-harness sees one; importing this needs the extra `eval`.

Texts become tokens, contexts are shortened and continuations end as in the harness's own Hugging Face backend, so that
both give the same scores of the same folder.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tokenizers

# Only the extra installs the harness, and types are checked without it.
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models import utils as lm_texts  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.harness.chat import Message, render_chat, token_of
from hypenet_jax.evals.harness.generation import GenerationRequest
from hypenet_jax.evals.harness.likelihood import LikelihoodRequest
from hypenet_jax.generation.decode import Sampling
from hypenet_jax.generation.generate import GenerationConfig

log = logging.getLogger("hypenet_jax")

Request: TypeAlias = LikelihoodRequest | GenerationRequest
Respond: TypeAlias = Callable[[Request], Iterable[tuple[int, Any]]]
Encoded: TypeAlias = tuple[tuple[str, str] | None, list[int], list[int]]

# Of a task that does not say how much is to be written.
MAX_NEW_TOKENS = 256


class HarnessModel(TemplateLM):
    """Turns the requests of the harness, which are texts, into requests of token ids.

    Attributes:
      respond: computes the responses to a request, in any order, each with the index of its row.
      folder_tokenizer: of the model's folder.
      max_length: tokens the model may read; longer contexts lose their first ones.
      end_ids: tokens that end a text.
      seed: of sampled continuations.
    """

    def __init__(
        self,
        respond: Respond,
        tokenizer: Tokenizer,
        *,
        name: str,
        max_length: int,
        end_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.respond, self.folder_tokenizer, self.name = respond, tokenizer, name
        self.max_length, self.seed = max_length, seed
        self.end_ids = tuple(dict.fromkeys((tokenizer.end_id, *end_ids)))
        # Ours reads a special token in a text as plain text; prompts of the harness may be made of them.
        self.reader = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        self.reader.encode_special_tokens = False

    @property
    def eot_token_id(self) -> int:
        return self.folder_tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: the token that begins a text, else the one that ends it."""
        start = token_of(self.folder_tokenizer.config, "bos_token")
        return self.folder_tokenizer.end_id if start is None else self.folder_tokenizer.id_of(start)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(
                self.folder_tokenizer.decode([self.prefix_token_id])
            )
        return self.reader.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        most = self.max_length + 1  # the last token is predicted, never read
        for texts, _, continuation in requests:
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens does not fit into max_length "
                    f"{self.max_length}: {texts}"
                )
        whole = [[*context, *continuation] for _, context, continuation in requests]
        self._warn_if_longer(whole, most)
        rows = tuple(np.asarray(row[-most:], np.int32) for row in whole)
        counted = tuple(len(continuation) for *_, continuation in requests)
        responses = [(0.0, True)] * len(requests)
        for index, response in self.respond(LikelihoodRequest(rows, counted)):
            responses[index] = response
            if requests[index][0] is not None:  # a part of a rolling request is none by itself
                self.cache_hook.add_partial("loglikelihood", requests[index][0], response)
        return responses

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        windows = [
            (index, make_disjoint_window(window))
            for index, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
        ]
        responses = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (index, _), (log_p, _) in zip(windows, responses, strict=True):
            totals[index] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            group = self._generation_request(requests, members)
            for row, tokens in self.respond(group):
                request = requests[members[row]]
                text = self.reader.decode(tokens, skip_special_tokens=True)
                for stop in group.until:
                    text = text.split(stop)[0]
                texts[members[row]] = text
                self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generation_request(
        self, requests: Sequence[Instance], members: list[int]
    ) -> GenerationRequest:
        """Requests of equal settings as one."""
        settings = lm_texts.normalize_gen_kwargs(requests[members[0]].args[1], MAX_NEW_TOKENS)
        count = settings.pop("max_gen_toks")
        most = self.max_length - count
        if most < 1:
            raise ValueError(
                f"max_gen_toks {count} leaves no room for a context in max_length {self.max_length}"
            )
        end = self.folder_tokenizer.decode([self.eot_token_id])
        until = lm_texts.handle_stop_sequences(settings.pop("until"), eos=end)
        prompts = [
            self.tok_encode(requests[index].args[0]) or [self.prefix_token_id] for index in members
        ]
        self._warn_if_longer(prompts, most)
        config = GenerationConfig(
            max_new_tokens=count,
            sampling=sampling_of(settings),
            stop_tokens=self.end_ids,
            seed=self.seed,
        )
        rows = tuple(np.asarray(prompt[-most:], np.int32) for prompt in prompts)
        return GenerationRequest(
            rows, tuple(members), config, tuple(stop for stop in until if stop)
        )

    def _warn_if_longer(self, rows: Sequence[list[int]], most: int) -> None:
        longer = sum(len(row) > most for row in rows)
        if longer:
            log.warning(
                "%d of %d requests are longer than %d tokens: the first tokens of their contexts are left out",
                *(longer, len(rows), most),
            )

    @property
    def tokenizer_name(self) -> str:
        """Tells cached prompts of one chat template from those of another."""
        return self.name

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        return render_chat(
            self.folder_tokenizer.config, chat_history, add_generation_prompt=add_generation_prompt
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.folder_tokenizer.config.get("chat_template") if chat_template else None


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """How a task wants its continuations drawn.

    Raises:
      ValueError: it wants what is not done here, such as beams.
    """
    known = {"do_sample", "temperature", "top_k", "top_p", "num_beams"}
    other = sorted(settings.keys() - known)
    if other or settings.get("num_beams", 1) != 1:
        raise ValueError(
            f"generation_kwargs {dict(settings)} ask for {other or 'beams'}; use until, max_gen_toks, "
            "do_sample, temperature, top_k and top_p"
        )
    if not settings["do_sample"]:
        return Sampling()
    return Sampling(
        settings.get("temperature", 1.0), settings.get("top_k"), settings.get("top_p", 1.0)
    )
