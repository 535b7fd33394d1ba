"""The text that models read: tokens of a folder of documents, or what a prepared corpus held out."""

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import Source, documents
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.config import HeldOut


def text_tokens(
    source: Source | HeldOut, tokenizer: Tokenizer, at_most: int
) -> Int[np.ndarray, " n"]:
    """The first `at_most` tokens of a source, each document followed by the end token; documents that are not UTF-8
    are left out.

    Raises:
      FileNotFoundError: there is no such text.
      ValueError: a corpus that was prepared with another tokenizer.
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
        if document.text is not None:
            pieces += [tokenizer.encode(document.text), end]
            count += len(pieces[-2]) + 1
    return np.concatenate([*pieces, end[:0]])[:at_most]
