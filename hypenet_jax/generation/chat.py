"""A conversation whose context stays in the state of the model, so that a turn reads only what is new.

What the model reads is always the rendering of the whole conversation by its chat template. Where this begins with all
that was read, the state goes on. A template may write the last answer otherwise once more follows (Qwen3's leaves out
its thoughts), and an answer may be made of other tokens than its text is read as: then the state goes back to where
this answer began, and reads it as the template has it now. Where the text before the answer changed too, everything is
read again. `Reply.read` says how much it was.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from hypenet_jax.data.chat import ChatTemplate, Message
from hypenet_jax.generation.batching import power_of_two
from hypenet_jax.generation.decode import Generation, decode, fold_rows
from hypenet_jax.generation.generate import check_prompt
from hypenet_jax.generation.model import check_memory, model_fingerprint
from hypenet_jax.generation.prefill import (
    PREFILL_PART,
    Context,
    TokenRow,
    left_padded,
    load_context,
    prefill,
    save_context,
    start_context,
    with_capacity,
)
from hypenet_jax.generation.text_generator import TextGenerator
from hypenet_jax.generation.throughput import Throughput

OnText: TypeAlias = Callable[[str], None]
FILE = "conversation.json"
# Few shapes, as each compiles a program: tokens that a state has room for at first (it doubles), and of a call.
ROOM = 2048
WIDTHS = (32, 256, PREFILL_PART)


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer; `ended`: by an end token, left out here; `read`: tokens that were read before its first."""

    text: str
    tokens: int
    ended: bool
    read: int


@dataclasses.dataclass(frozen=True)
class _Read:
    """Tokens that were read, the context after them, and the mark to go back to, after the first `marked` of them."""

    tokens: TokenRow
    context: Context
    marked: int
    mark: Context


class Chat:
    """Turns of a conversation, each read after those before it.

    Attributes:
      messages: of the conversation so far.
      generator: whose `template` renders them, and whose `config` says how answers are drawn.
    """

    def __init__(self, generator: TextGenerator, messages: Sequence[Message] = ()) -> None:
        """Nothing is read before the first turn.

        Args:
          messages: what comes before it, such as a system prompt.
        Raises:
          ValueError: the tokenizer has no chat template.
        """
        self.generator, self._first, self.messages = generator, tuple(messages), tuple(messages)
        self._template: ChatTemplate = generator.template
        self._read: _Read | None = None

    def say(
        self,
        content: str,
        *,
        on_text: OnText | None = None,
        throughput: Throughput | None = None,
    ) -> Reply:
        """The answer to what the user says; both belong to the conversation from then on.

        After an error the conversation is as it was, and the next turn reads all of it.

        Args:
          on_text: is given the text of the answer as it is written.
          throughput: is added to.
        Raises:
          ValueError: the template refuses the message, or the conversation exceeds `max_length`.
          FloatingPointError, MemoryError, JaxRuntimeError: the model computes NaN; the device has no room.
        """
        config, throughput = self.generator.config, throughput or Throughput()
        messages = (*self.messages, {"role": "user", "content": content})
        prompt = self._tokens(messages, add_generation_prompt=True)
        check_prompt(prompt, self.generator.decoder.config.vocab_size, config)
        with throughput.prefill.timed():
            start, read = self._read_prompt(messages, prompt)
            jax.block_until_ready(read.context)
        with throughput.decode.timed():
            written = self._write(read.context, on_text)
            new = np.asarray(written.tokens)[0, : int(written.lengths[0])]
        if written.broken[0]:
            raise FloatingPointError("the model computes NaN logits")
        throughput.prefill.tokens += len(prompt) - start
        throughput.decode.tokens += len(new)
        tokens = np.concatenate([prompt, new])
        self._read = dataclasses.replace(read, tokens=tokens, context=written.context)
        text = self.generator.text(new.tolist())
        self.messages = (*messages, {"role": "assistant", "content": text})
        ended = bool(len(new)) and int(new[-1]) in config.stop_tokens
        return Reply(text, len(new), ended, len(prompt) - start)

    def reset(self) -> None:
        """Forgets all turns; what came before the first stays."""
        self.messages, self._read = self._first, None

    def save(self, folder: pathlib.Path) -> None:
        """Writes the conversation and what was read of it into a new folder.

        Raises:
          FileExistsError: the folder is there.
        """
        if folder.exists():
            raise FileExistsError(f"{folder} is there already; name a new folder or remove it")
        folder.mkdir(parents=True)
        kept: dict[str, Any] = {"model": self._fingerprint(), "messages": self.messages}
        kept |= {"tokens": [], "marked": 0}
        if (read := self._read) is not None:
            kept |= {"tokens": read.tokens.tolist(), "marked": read.marked}
            decoder, context = self.generator.decoder, with_capacity(read.context, len(read.tokens))
            save_context(folder / "context", decoder, context)
            # No array of a file may be empty, so that a mark has one slot.
            mark = dataclasses.replace(read.mark, state=read.mark.state.with_capacity(1))
            save_context(folder / "mark", decoder, mark)
        text = json.dumps(kept, ensure_ascii=False)
        (folder / FILE).write_text(text, encoding="utf-8")

    def load(self, folder: pathlib.Path) -> None:
        """Goes on with what `save` wrote, in place of this conversation.

        Raises:
          FileNotFoundError: no conversation is there.
          ValueError: it is of another model, tokenizer or template, or damaged.
        """
        if not (folder / FILE).is_file():
            raise FileNotFoundError(f"{folder} holds no conversation; name a folder that was saved")
        try:
            kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
            model, messages = kept["model"], tuple(kept["messages"])
            tokens, marked = np.asarray(kept["tokens"], np.int32), int(kept["marked"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / FILE} is damaged ({error!r})") from error
        if model != self._fingerprint():
            raise ValueError(f"{folder} is a conversation with another model or chat template")
        read = None
        if len(tokens):
            decoder = self.generator.decoder
            mark, context = (load_context(folder / name, decoder) for name in ("mark", "context"))
            mark = dataclasses.replace(mark, state=mark.state.with_capacity(0))
            if len(tokens) != context.state.lengths[0] or marked != mark.state.lengths[0]:
                raise ValueError(f"{folder / FILE} is damaged: its tokens are not those of context")
            read = _Read(tokens, context, marked, mark)
        self.messages, self._read = messages, read

    def _tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> TokenRow:
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        return self.generator.tokenizer.encode(text, special_tokens=True)

    def _read_prompt(self, messages: Sequence[Message], prompt: TokenRow) -> tuple[int, _Read]:
        """How much of the prompt was read before, and the state after all of it, with room for an answer.

        The mark is where the next turn's rendering may begin to differ, at the latest where the answer begins.
        """
        decoder = self.generator.decoder
        needed = len(prompt) + self.generator.config.max_new_tokens
        capacity = max(ROOM, power_of_two(needed))
        check_memory(decoder, 1, capacity)
        follows = [{"role": "assistant", "content": "."}, {"role": "user", "content": "."}]
        later = self._tokens((*messages, *follows), add_generation_prompt=False)
        start, context = self._go_on(prompt)
        if context is None:
            context = start_context(decoder, 1, capacity)
        elif context.state.cache_position.capacity < capacity:
            context = with_capacity(context, capacity)
        marked = max(start, common_prefix(prompt, later))
        context = self._prefill(context, prompt[start:marked])
        mark = _mark(context)
        context = self._prefill(context, prompt[marked:])
        return start, _Read(prompt, context, marked, mark)

    def _go_on(self, prompt: TokenRow) -> tuple[int, Context | None]:
        """The longest part of the prompt that the state can be after, and that state; it is given away."""
        read, self._read = self._read, None
        if read is None:
            return 0, None
        common = common_prefix(prompt, read.tokens)
        if common == len(read.tokens):
            return common, read.context
        if common >= read.marked:
            return read.marked, _rewound(read.context, read.mark)
        return 0, None

    def _prefill(self, context: Context, tokens: TokenRow) -> Context:
        """Reads tokens, padded to one of a few widths."""
        if not len(tokens):
            return context
        width = next((width for width in WIDTHS if width >= len(tokens)), WIDTHS[-1])
        rows, segment_ids = left_padded([tokens], -(-len(tokens) // width) * width)
        decoder, params = self.generator.decoder, self.generator.params
        return prefill(decoder, params, context, rows, segment_ids=segment_ids)

    def _write(self, context: Context, on_text: OnText | None) -> Generation:
        """An answer; the number of those before it tells its draws from theirs."""
        config = self.generator.config
        turn = sum(message["role"] == "assistant" for message in self.messages)
        stream = self.generator.stream(on_text) if on_text else None
        return decode(
            *(self.generator.decoder, self.generator.params, context),
            max_new_tokens=config.max_new_tokens,
            sampling=config.sampling,
            stop_token=config.stop_tokens,
            key=fold_rows(jax.random.key(config.seed), np.asarray([turn])),
            on_tokens=stream and (lambda new: stream((0,), new)),
        )

    def _fingerprint(self) -> str:
        generator, template = self.generator, dataclasses.asdict(self._template)
        words = generator.tokenizer.fingerprint
        return model_fingerprint(generator.decoder, generator.params, words, template)


@jax.jit
def _mark(context: Context) -> Context:
    return Context(context.state.mark(), jnp.copy(context.logits))


@functools.partial(jax.jit, donate_argnums=0)
def _rewound(context: Context, mark: Context) -> Context:
    return Context(context.state.rewound(mark.state), mark.logits)


def common_prefix(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> int:
    """How many first tokens two texts share."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if different.size else shorter
