"""Reading a prepared corpus: its manifest and its stored rows."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from grain.sources import ArrayRecordDataSource
from jaxtyping import Int

from hypenet_jax.data.packing import PackedRow, row_from_bytes
from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared folder: packed rows of `block_length` tokens for training and held out."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def block_length(self) -> int:
        """Tokens of a stored row."""
        return self.manifest["recipe"]["block_length"]

    @property
    def vocab_size(self) -> int:
        """Size of the smallest vocabulary that covers this text."""
        return self.manifest["vocab_size"]

    @property
    def text_fingerprint(self) -> str:
        """Fingerprint of the source files."""
        return self.manifest["recipe"]["source_fingerprint"]

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split, end tokens included."""
        return self.manifest["splits"][split]["tokens"]

    def num_rows(self, split: Split, context_length: int) -> int:
        """Rows of `context_length` that cover the split once; only the last may be padded."""
        return -(-self.num_tokens(split) // context_length)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this text, read from the folder."""
        return load_tokenizer(self.folder, self.manifest["end_token"])

    def blocks(self, split: Split) -> "Blocks":
        """Random access to the stored rows.

        Raises:
          ValueError: the split is empty.
          FileNotFoundError: a shard of the manifest is missing.
        """
        shards = self.manifest["splits"][split]["shards"]
        if not shards:
            raise ValueError(
                f"{self.folder} has no {split} text; prepare it with more documents "
                f"or another heldout_fraction than {self.manifest['recipe']['heldout_fraction']}"
            )
        rows = self.manifest["splits"][split]["rows"]
        return Blocks(tuple(str(self.folder / name) for name in shards), rows)

    def tokens(self, split: Split) -> Int[np.ndarray, " n"]:
        """All tokens of a split as one array, end tokens included; for held-out text, which is small."""
        blocks = self.blocks(split)
        return np.concatenate([blocks[i].tokens for i in range(len(blocks))])


class Blocks:
    """The stored rows of a split by number."""

    def __init__(self, paths: tuple[str, ...], num_rows: int):
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"shards {missing} are missing; prepare the data again")
        self._paths, self._num_rows = paths, num_rows
        try:
            self._records = ArrayRecordDataSource(paths)
        except Exception as error:  # array_record raises several kinds, unwrapped
            raise OSError(f"cannot open {paths} ({error}); prepare the data again") from error

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> PackedRow:
        try:
            return row_from_bytes(self._records[index])
        except Exception as error:
            raise OSError(
                f"stored row {index} of {self._paths} is damaged ({error}); prepare the data again"
            ) from error


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
        version = manifest["recipe"]["format_version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or of an older format ({error!r}); prepare with rebuild=True"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}; "
            "prepare with rebuild=True"
        )
    return Prepared(Path(folder), manifest)
