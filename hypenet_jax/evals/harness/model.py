"""A model of this project as lm-evaluation-harness sees one; importing this needs the extra `eval`.

Texts become tokens, contexts are shortened and continuations end as in the harness's own Hugging Face backend, so that
both give the same scores of the same folder.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

# Only the extra installs the harness, and types are checked without it.
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models import utils as lm_texts  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from hypenet_jax import runtime
from hypenet_jax.data.chat import Message, chat_template
from hypenet_jax.data.tokenizer import special_token
from hypenet_jax.evals.harness.chat import left_open
from hypenet_jax.evals.harness.requests import GenerationRequest, LikelihoodRequest, Request
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import TokenRow
from hypenet_jax.generation.decode import Sampling
from hypenet_jax.generation.generate import GenerationConfig

log = logging.getLogger("hypenet_jax")

Encoded: TypeAlias = tuple[tuple[str, str] | None, list[int], list[int]]

# Of a task that does not say how much is to be written.
MAX_NEW_TOKENS = 256


class HarnessModel(TemplateLM):
    """Turns the requests of the harness, which are texts, into requests of token ids.

    Attributes:
      max_length: tokens the model may read; longer contexts lose their first ones.
      seed: of sampled continuations.
    """

    # Tells apart the prompts that the harness could keep, which it is not asked to.
    tokenizer_name = ""

    def __init__(self, model: EvalModel, *, max_length: int, seed: int = 0) -> None:
        super().__init__()
        assert model.tokenizer is not None
        self.model, self.words, self.max_length, self.seed = (
            model,
            model.tokenizer,
            max_length,
            seed,
        )
        # Prompts of the harness may be made of special tokens.
        self.reader = self.words.with_special_tokens

    def respond(self, request: Request) -> Iterator[tuple[int, Any]]:
        """Index of a row and the response for it, as batches end; the other processes compute along, see `_follow`."""
        return runtime.broadcast(request).responses(self.model)

    @property
    def eot_token_id(self) -> int:
        return self.words.end_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: the token that begins a text, else the one that ends it."""
        start = special_token(self.words.config, "bos_token")
        return self.words.end_id if start is None else self.words.id_of(start)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.words.decode([self.prefix_token_id]))
        return self.reader.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens does not fit into max_length "
                    f"{self.max_length}: {texts}"
                )
        whole = [[*context, *continuation] for _, context, continuation in requests]
        rows = _cut(whole, self.max_length + 1)  # the last token is predicted, never read
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
                text = lm_texts.postprocess_generated_text(text, [*group.until], None)
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
        end = self.words.decode([self.eot_token_id])
        until = lm_texts.handle_stop_sequences(settings.pop("until"), eos=end)
        prompts = [
            self.tok_encode(requests[index].args[0]) or [self.prefix_token_id] for index in members
        ]
        config = GenerationConfig(
            max_new_tokens=count,
            sampling=sampling_of(settings),
            stop_tokens=tuple({self.eot_token_id, *self.model.end_ids}),
            seed=self.seed,
        )
        stops = tuple(stop for stop in until if stop)
        return GenerationRequest(_cut(prompts, most), tuple(members), config, stops)

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        template = chat_template(self.words)
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else left_open(text, chat_history[-1]["content"])


def _cut(rows: Sequence[list[int]], most: int) -> tuple[TokenRow, ...]:
    """The last `most` tokens of each."""
    longer = sum(len(row) > most for row in rows)
    if longer:
        log.warning(
            "%d of %d requests are longer than %d tokens: the first tokens of their contexts are left out",
            *(longer, len(rows), most),
        )
    return tuple(np.asarray(row[-most:], np.int32) for row in rows)


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
