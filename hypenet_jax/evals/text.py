"""The text that models read, as tokens: a folder of documents, or what a prepared corpus held out."""

import dataclasses

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import Source, documents
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out text of a prepared corpus, whose tokenizer the models must have."""

    folder: str


def text_tokens(
    source: Source | HeldOut, tokenizer: Tokenizer, at_most: int
) -> Int[np.ndarray, " n"]:
    """The first `at_most` tokens of a source, each document followed by the end token; documents that are empty or not
    UTF-8 are left out.

    Raises:
      FileNotFoundError: there is no such folder, or no such file in it.
      ValueError: no document holds text, or a corpus was prepared with another tokenizer.
    """
    if isinstance(source, HeldOut):
        prepared = open_prepared(source.folder)
        if prepared.tokenizer().fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"{source.folder} was prepared with another tokenizer than the model's; evaluate on a folder of text"
            )
        return prepared.tokens("heldout")[:at_most].astype(np.int32)
    end, pieces, count = np.asarray([tokenizer.end_id], np.int32), [], 0
    for document in documents(source):
        if count >= at_most:
            break
        if document.text:
            pieces += [tokenizer.encode(document.text), end]
            count += len(pieces[-2]) + 1
    if not pieces:
        raise ValueError(
            f"no document in {source.folder} holds text: all are empty or not UTF-8; name a folder of text"
        )
    return np.concatenate(pieces)[:at_most]


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, model: str) -> None:
    """Raises ValueError: the tokenizer has ids that the model does not know."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {model!r} has ids up to {tokenizer.vocab_size - 1}, the model a vocabulary of "
            f"{config.vocab_size}; use the tokenizer that the model was trained with"
        )
