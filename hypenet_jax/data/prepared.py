"""Reading a prepared corpus: its manifest, and a file of tokens for each split."""

import dataclasses
import functools
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from hypenet_jax.data.batch import Row, packed_row
from hypenet_jax.data.conversations import conversation_row, token_ids
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
# Of text, whose documents end with the end token; and of conversations, which are marked.
TEXT_FORMAT, CONVERSATIONS_FORMAT = 3, 4


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared folder: text for training and held out, in blocks of `block_length` tokens."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def block_length(self) -> int:
        """Tokens of a block."""
        return self.manifest["recipe"]["block_length"]

    @property
    def holds_conversations(self) -> bool:
        """Whether it was prepared from conversations, each of which lies whole in one block."""
        return self.manifest["recipe"]["format_version"] == CONVERSATIONS_FORMAT

    @property
    def vocab_size(self) -> int:
        """Size of the smallest vocabulary that covers this text."""
        return self.manifest["vocab_size"]

    @property
    def text_fingerprint(self) -> str:
        """Fingerprint of the source files."""
        return self.manifest["recipe"]["source_fingerprint"]

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split; end tokens of text and padding of conversations included."""
        return self.manifest["splits"][split]["tokens"]

    def num_rows(self, split: Split, context_length: int) -> int:
        """Rows of `context_length` that cover the split once; only the last may be padded."""
        return -(-self.num_tokens(split) // context_length)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this text, read from the folder."""
        return load_tokenizer(self.folder, self.manifest["end_token"])

    def blocks(self, split: Split) -> "Blocks":
        """Random access to the text.

        Raises:
          ValueError: the split is empty.
          OSError: its file is missing or incomplete.
        """
        num_tokens = self.num_tokens(split)
        if not num_tokens:
            raise ValueError(
                f"{self.folder} has no {split} text; prepare it with more documents "
                f"or another heldout_fraction than {self.manifest['recipe']['heldout_fraction']}"
            )
        path = self.folder / f"{split}.tokens"
        end = None if self.holds_conversations else self.manifest["end_id"]
        return Blocks(path, num_tokens, self.block_length, end)

    def tokens(self, split: Split) -> Int[np.ndarray, " n"]:
        """All tokens of a split as one array, end tokens included; for held-out text, which is small."""
        blocks = self.blocks(split)
        words = np.concatenate([blocks[i] for i in range(len(blocks))])
        return token_ids(words[words >= 0]) if self.holds_conversations else words


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of a split by number; the last one may be shorter.

    The file holds all tokens, then a CRC-32 of each block: 4 bytes each, little endian. Without an `end_id` the tokens
    are `Words` of conversations.
    """

    path: Path
    num_tokens: int
    block_length: int
    end_id: int | None

    def __post_init__(self) -> None:
        size = 4 * (self.num_tokens + len(self))
        if not self.path.is_file() or self.path.stat().st_size != size:
            raise OSError(f"{self.path} is missing or not of {size} bytes; prepare the data again")

    def __reduce__(self):
        return Blocks, dataclasses.astuple(self)  # numpy would pickle the content of the file

    def __len__(self) -> int:
        return -(-self.num_tokens // self.block_length)

    def __getitem__(self, index: int) -> Int[np.ndarray, " n"]:
        start = index * self.block_length
        block = self._words[: self.num_tokens][start : start + self.block_length]
        if zlib.crc32(block.data) != self._words[self.num_tokens + index].view("<u4"):
            raise OSError(f"block {index} of {self.path} is damaged; prepare the data again")
        return block

    def row(
        self,
        block: int,
        part: int,
        context_length: int,
        reset_documents: bool,
        join_below: int = 0,
    ) -> Row:
        """Part number `part` of a block; see `batch.packed_row` and `conversations.conversation_row`."""
        text = self[block][part * context_length :][:context_length]
        if self.end_id is None:
            return conversation_row(text, reset_documents)
        return packed_row(text, self.end_id, context_length, reset_documents, join_below)

    @functools.cached_property
    def _words(self) -> np.ndarray:
        return np.memmap(self.path, "<i4", "r").view(np.ndarray)


def open_prepared(folder: str | Path) -> Prepared:
    """Opens a prepared folder; the source text is not needed.

    Raises:
      FileNotFoundError: it has no manifest.
      ValueError: the manifest is damaged or of another format.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no prepared data (no manifest.json); prepare it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # Version 1 had the recipe as `asked` once.
        version = (manifest.get("recipe") or manifest["asked"])["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove the folder") from error
    if version not in (TEXT_FORMAT, CONVERSATIONS_FORMAT):
        raise ValueError(
            f"{path} has format {version}, this version reads {TEXT_FORMAT} and {CONVERSATIONS_FORMAT}: remove the "
            "folder, and the same command prepares it again"
        )
    return Prepared(Path(folder), manifest)
