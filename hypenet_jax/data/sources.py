"""Sources: folders of text files, JSON lines or Parquet with texts or conversations, read in a fixed order."""

import dataclasses
import fnmatch
import gzip
import hashlib
import itertools
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

# Small files whole and the start of large ones: notices changed text without reading terabytes.
HASHED_BYTES_PER_FILE = 1 << 20


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Every file below `folder` that matches a glob pattern is one document.

    Attributes:
      exclude: patterns of folder or file names; a file is excluded if any part of its path below
        `folder` matches.
    """

    folder: str
    patterns: tuple[str, ...]
    exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Every line of the matching files (.gz too) is a JSON object; its `field` is one document."""

    folder: str
    patterns: tuple[str, ...]
    field: str


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Every row of the matching files is one document, in the text column `column`."""

    folder: str
    patterns: tuple[str, ...]
    column: str


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Every JSON line (.gz too), or row of a .parquet file, is a conversation: its `field` lists the messages.

    Attributes:
      last_answer_alone: of several answers only the last is learned; for chat templates without {% generation %} blocks
        that rewrite earlier turns, as Qwen3's.
    """

    folder: str
    patterns: tuple[str, ...]
    field: str = "messages"
    last_answer_alone: bool = False


Source: TypeAlias = TextFiles | JsonLines | Parquet

_KINDS = {str: "text", list: "list"}


class Document(NamedTuple):
    """The path of a document below its folder, with the line or row in files of many; its text, None if not UTF-8."""

    name: str
    text: str | None


class Conversation(NamedTuple):
    """The same of a conversation: its messages as the file has them."""

    name: str
    messages: list[Any] | None


def standard_library() -> TextFiles:
    """Python files of the running interpreter's standard library, without its tests.

    About 730 files and 12 MB in Python 3.11; other minor versions differ a little.
    """
    excluded = ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test")
    return TextFiles(sysconfig.get_paths()["stdlib"], ("**/*.py",), excluded)


def source_files(source: Source | Conversations) -> dict[str, Path]:
    """The files of a source by their path below its folder, sorted.

    Raises:
      FileNotFoundError: the folder does not exist, or no file matches.
    """
    root = Path(source.folder)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {problem}; name a folder of text")
    excluded = source.exclude if isinstance(source, TextFiles) else ()
    files = {
        path.relative_to(root).as_posix(): path
        for pattern in source.patterns
        for path in root.glob(pattern)
        if path.is_file()
    }
    kept = {name: files[name] for name in sorted(files) if not _is_excluded(name, excluded)}
    if not kept:
        raise FileNotFoundError(
            f"no file below {root} matches {list(source.patterns)} without {list(excluded)}; "
            f"{len(files)} matched before the exclusions, so change the patterns or the folder"
        )
    return kept


def documents(source: Source) -> Iterator[Document]:
    """All documents of a source, always in the same order.

    Raises:
      FileNotFoundError: the source has no files.
      OSError: a file cannot be read.
      ValueError: a line is no JSON object, or a field or column is missing; the message names the
        file and line.
    """
    for name, path in source_files(source).items():
        match source:
            case TextFiles():
                yield Document(name, _decode(path.read_bytes()))
            case JsonLines():
                yield from itertools.starmap(Document, _json_values(path, name, source.field, str))
            case Parquet():
                read = _parquet_values(path, name, source.column, str)
                yield from itertools.starmap(Document, read)


def conversations(source: Conversations) -> Iterator[Conversation]:
    """All conversations of a source, always in the same order; raises as `documents` does."""
    for name, path in source_files(source).items():
        read = _parquet_values if path.suffix == ".parquet" else _json_values
        yield from itertools.starmap(Conversation, read(path, name, source.field, list))


def source_fingerprint(source: Source | Conversations) -> str:
    """sha256 over names, sizes and first MiB of all files; independent of the folder's path."""
    digest = hashlib.sha256()
    for name, path in source_files(source).items():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(HASHED_BYTES_PER_FILE))
    return digest.hexdigest()


def _is_excluded(name: str, excluded: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(part, rule) for part in name.split("/") for rule in excluded)


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _json_values(path: Path, name: str, field: str, kind: type) -> Iterator[tuple[str, Any]]:
    """The place and the field of every line that is not blank; None for a line that is not UTF-8."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            place, line = f"{name}:{number}", _decode(raw)
            if line is None or line.strip():
                yield place, line and _json_field(line, place, field, kind)


def _json_field(line: str, place: str, field: str, kind: type) -> Any:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error}); each line must be one object") from error
    if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
        fields = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{place} has no {_KINDS[kind]} field {field!r}; it has {fields}")
    return entry[field]


def _parquet_values(path: Path, name: str, column: str, kind: type) -> Iterator[tuple[str, Any]]:
    """The place and the column of every row."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow; install hypenet-jax[parquet], or use JSON lines"
        ) from error
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; it has {columns}")
        batches = file.iter_batches(columns=[column], batch_size=1024)
        values = itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
        for number, value in enumerate(values):
            if not isinstance(value, kind):
                raise ValueError(
                    f"{name} row {number}, column {column!r} holds {type(value).__name__}; "
                    f"remove such rows or name a {_KINDS[kind]} column"
                )
            yield f"{name}:{number}", value
