"""Conversations as words: tokens of the chat template, where each conversation begins, and which tokens are learned.

A word has the 4 bytes of a token of text: what text needs no place for stands above the id.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from hypenet_jax.data.batch import Row, RowTokens, make_row
from hypenet_jax.data.chat import ChatTemplate, chat_template
from hypenet_jax.data.sources import Conversations, conversations
from hypenet_jax.data.tokenizer import Tokenizer

Words: TypeAlias = Int[np.ndarray, " _"]
"""Tokens with marks: FIRST on the first of a conversation, CONTEXT on what is read and not learned; or PADDING."""

FIRST, CONTEXT, PADDING = 1 << 28, 1 << 29, -1
_ID = FIRST - 1


def conversation_words(
    source: Conversations, tokenizer: Tokenizer, length: int, reported: Mapping[str, list[str]]
) -> Iterator[tuple[str, Words]]:
    """The name and the words of every conversation that can be learned from; one that is too long ends at `length`.

    Args:
      reported: lists that get the names of conversations: "not_utf8" and "unanswered", where no token of the assistant
        is among the first `length`, are left out; "cut" are those that go on without their end.
    Raises:
      ValueError: no chat template; or what is no conversation, a message that is empty or that the template does not
        read, or nothing that the assistant says, with the file and the line.
    """
    template = chat_template(tokenizer)
    for name, messages in conversations(source):
        if messages is None:
            reported["not_utf8"].append(name)
            continue
        try:
            words = _words(messages, template, tokenizer, source.last_answer_alone)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        kept = words[:length]
        if not learned(kept).any():
            reported["unanswered"].append(name)
            continue
        if len(kept) < len(words):
            reported["cut"].append(name)
        yield name, kept


def learned(words: Words) -> Bool[np.ndarray, " n"]:
    """Which tokens are learned: those of the assistant, but for the first of a conversation, which nothing predicts."""
    return (words >= 0) & ((words & (FIRST | CONTEXT)) == 0)


def token_ids(words: Words) -> Int[np.ndarray, " n"]:
    """The tokens without their marks; 0 for padding."""
    return np.where(words >= 0, words & _ID, 0).astype(np.int32)


def conversation_row(words: RowTokens, reset_documents: bool) -> Row:
    """The row of a block: a segment per conversation, or one of all; loss weight 1 on what is learned, 0 elsewhere."""
    segments = np.cumsum((words & FIRST) != 0) if reset_documents else np.ones_like(words)
    row = make_row(token_ids(words), np.where(words >= 0, segments, 0).astype(np.int32))
    return row._replace(loss_weight=learned(words).astype(np.float32))


def _words(
    messages: list[Any], template: ChatTemplate, tokenizer: Tokenizer, last_answer_alone: bool
) -> Words:
    chat = template.encode(tokenizer, messages, last_answer_alone=last_answer_alone)
    for number, message in enumerate(messages, 1):
        if not (message.get("content") or "").strip() and not message.get("tool_calls"):
            raise ValueError(f"message {number}, of role {message['role']!r}, is empty")
    words = np.where(chat.from_assistant, chat.tokens, chat.tokens | CONTEXT)
    words[:1] |= FIRST
    if not learned(words).any():
        none = "its last message is not" if last_answer_alone else "no message in it is"
        raise ValueError(f"{none} the assistant's, so there is nothing to learn; leave it out")
    return words
