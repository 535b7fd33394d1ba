"""Conversations as text, by the chat template of a tokenizer."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox

Message = Mapping[str, str]


def token_of(config: Mapping[str, Any], name: str) -> str | None:
    """A special token of a tokenizer_config.json: a string in some files and {"content": string, ...} in others."""
    entry = config.get(name)
    return entry["content"] if isinstance(entry, Mapping) else entry


def render_chat(
    config: Mapping[str, Any], messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """The messages as the model was taught to read them.

    Args:
      config: tokenizer_config.json, with its `chat_template`.
      messages: "role" and "content" of each.
      add_generation_prompt: end with what comes before an answer; otherwise the last message stays open.
    Raises:
      ValueError: there is no template, or it drops the message that is to be continued.
    Source: `apply_chat_template` of transformers.
    """
    template = config.get("chat_template")
    if not isinstance(template, str):
        raise ValueError(
            "the tokenizer has no chat_template; evaluate without one, or add it to tokenizer_config.json"
        )
    tokens = {name: token_of(config, name) for name in config if name.endswith("_token")}
    text = _compiled(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, **tokens
    )
    return text if add_generation_prompt else _left_open(text, messages[-1]["content"])


def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    to_json = functools.partial(json.dumps, ensure_ascii=False)
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise ValueError(f"the chat template refuses these messages: {message}")


def _left_open(text: str, last: str) -> str:
    """The text up to the end of the last message, without what closes it."""
    start = text.rfind(last.strip())
    if start < 0:
        raise ValueError(f"the chat template drops the message to be continued: {last!r}")
    whole = last.lstrip()
    kept = whole if text.startswith(whole, start) else last.strip()
    return text[: start + len(kept)]
