"""Conversations as text and tokens, by the chat template of a tokenizer: a program in jinja2, run in its sandbox."""

import dataclasses
import datetime
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from hypenet_jax.data.tokenizer import Tokenizer, special_token

Message: TypeAlias = Mapping[str, Any]
"""A "role" and its "content", and whatever else the template reads, such as "tool_calls"."""

ROLES = ("system", "developer", "user", "assistant", "tool")
TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Special tokens that a template may name, as in tokenizer_config.json."""
OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a `generation` block renders: two code points that no text may hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTokens:
    """A conversation to learn from, and which of its tokens the assistant writes, end tokens included."""

    tokens: Int[np.ndarray, " n"]
    from_assistant: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How a model was taught to read conversations.

    Attributes:
      source: the template, in jinja2.
      special_tokens: text of `bos_token`, `eos_token` and the others that the tokenizer has.
      arguments: the template's own, such as Qwen3's `enable_thinking`, or `tools`.
    """

    source: str
    special_tokens: Mapping[str, str]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, as `apply_chat_template` of transformers has it.

        Args:
          add_generation_prompt: end with what comes before an answer.
        Raises:
          ValueError: messages that are none, or that the template refuses, cannot read or leaves out.
        """
        text = self._marked(messages, add_generation_prompt)
        return text.replace(OPEN, "").replace(CLOSE, "")

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], *, last_answer_alone: bool = False
    ) -> ChatTokens:
        """Tokens of a conversation, and which of them are the assistant's.

        Where the template has `generation` blocks, those say it. Else an answer is what follows the rendering of the
        messages before it with a generation prompt, up to the end of the rendering with it; white space after its end
        token is the template's. A token that is in part the assistant's counts.

        Args:
          last_answer_alone: earlier answers count as read, not written: for templates that rewrite them once more
            follows, as Qwen3's does with thoughts.
        Raises:
          ValueError: as `render`; or the conversation does not begin with what was rendered of its beginning.
        """
        marked = self._marked(messages, add_generation_prompt=False)
        text = marked.replace(OPEN, "").replace(CLOSE, "")
        encoding = tokenizer.with_special_tokens.encode(text, add_special_tokens=False)
        first = len(messages) - 1 if last_answer_alone else 0
        spans = _marked_spans(marked) if OPEN in marked else self._answers(messages, text, first)
        ids = np.asarray(encoding.ids, np.int32)
        from_assistant = np.zeros(len(ids), bool)
        for start, end in list(spans)[-1:] if last_answer_alone else spans:
            tokens = _tokens_between(encoding, start, end)
            if OPEN not in marked:
                tokens = _without_space_after_end(tokenizer, ids, tokens)
            from_assistant[tokens] = True
        return ChatTokens(tokens=ids, from_assistant=from_assistant)

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template is no jinja2: line {error.lineno}: {error}"
            ) from error

    def _marked(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text, with OPEN and CLOSE around what `generation` blocks render."""
        if not messages:
            raise ValueError("a conversation without a message; begin with the user's")
        shown = [_checked(message, number) for number, message in enumerate(messages, 1)]
        template = self._compiled
        given = {"tools": None, "documents": None, **self.special_tokens, **self.arguments}
        given |= {"messages": shown, "add_generation_prompt": add_generation_prompt}
        try:
            text = template.render(**given)
        except Exception as error:  # templates are programs: they raise whatever Python does
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        for number, message in enumerate(shown, 1):
            said = message.get("content", "").strip()
            if message["role"] in ("system", "user") and said not in text:
                raise ValueError(
                    f"the chat template leaves out message {number}, of role {message['role']!r}; leave it out too"
                )
        return text

    def _answers(
        self, messages: Sequence[Message], text: str, first: int
    ) -> Iterator[tuple[int, int]]:
        """Where the answers from message `first` on lie in the text, by the renderings of its beginnings."""
        for i, message in enumerate(messages):
            if i >= first and message["role"] == "assistant":
                before = self.render(messages[:i], add_generation_prompt=True)
                after = self.render(messages[: i + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise ValueError(
                        f"the chat template writes what is before or in message {i + 1}, the assistant's, otherwise "
                        "once more follows, so that no token is known to be its answer; learn from the last answer "
                        "of each conversation alone, or use a template with {% generation %} blocks"
                    )
                yield len(before), len(after)


def chat_template(tokenizer: Tokenizer, arguments: Mapping[str, Any] | None = None) -> ChatTemplate:
    """The chat template of a tokenizer; of several that have names, the one named "default".

    Args:
      arguments: see `ChatTemplate`.
    Raises:
      ValueError: it has none.
    """
    source: Any = tokenizer.config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        raise ValueError(
            "the tokenizer has no chat template: neither chat_template.jinja nor a chat_template in "
            "tokenizer_config.json; add the one that the model was trained with, or use plain prompts"
        )
    tokens = {name: special_token(tokenizer.config, name) for name in TOKENS}
    return ChatTemplate(
        source=source,
        special_tokens={name: token for name, token in tokens.items() if token is not None},
        arguments=arguments or {},
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As transformers has it: jinja2's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _checked(message: Message, number: int) -> Message:
    """The message without fields that are null; ValueError: it is none that a template reads."""
    if not isinstance(message, Mapping):
        raise ValueError(f'message {number} is no object with "role" and "content"')
    message = {name: value for name, value in message.items() if value is not None}
    role, content = message.get("role"), message.get("content", "")
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}; use one of {', '.join(ROLES)}")
    if not isinstance(content, str) or ("content" not in message and "tool_calls" not in message):
        raise ValueError(f'message {number}, of role {role!r}, has no text as its "content"')
    if OPEN in content or CLOSE in content:
        raise ValueError(f"message {number} holds U+FDD0 or U+FDD1, which are no characters")
    return message


def _marked_spans(marked: str) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end in the text without marks; of nested ones the outer."""
    depth = start = position = 0
    for character in marked:
        if character == OPEN:
            start = position if depth == 0 else start
            depth += 1
        elif character == CLOSE:
            depth -= 1
            if depth == 0:
                yield start, position
        else:
            position += 1


def _tokens_between(encoding: tokenizers.Encoding, start: int, end: int) -> Int[np.ndarray, " _"]:
    """Indices from the first to the last token that holds a character of this span."""
    first, last = np.asarray(encoding.offsets, np.int64).reshape(-1, 2).T
    inside = np.flatnonzero((first < end) & (last > start))
    return np.arange(inside[0], inside[-1] + 1) if inside.size else inside


def _without_space_after_end(
    tokenizer: Tokenizer, ids: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " _"]
) -> Int[np.ndarray, " _"]:
    """Without the white space that a template adds after the last special token, which nobody generates."""
    special = np.flatnonzero(np.isin(ids[tokens], [*tokenizer.special_ids]))
    after = tokens[special[-1] + 1 :] if special.size else tokens[:0]
    blank = not tokenizer.decode(ids[after]).strip()
    return tokens[: len(tokens) - len(after)] if blank else tokens
