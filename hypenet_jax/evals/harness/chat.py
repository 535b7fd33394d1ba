"""Conversations as text, by the chat template of a tokenizer."""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2.sandbox

from hypenet_jax.data.tokenizer import special_token

Message = Mapping[str, str]


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
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": time.strftime}
    tokens = {name: special_token(config, name) for name in config if name.endswith("_token")}
    text = environment.from_string(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, **tokens
    )
    return text if add_generation_prompt else _left_open(text, messages[-1]["content"])


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
