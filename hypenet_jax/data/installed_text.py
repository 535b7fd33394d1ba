"""Text that every machine has: documentation and source of the interpreter and of its installed packages.

One document per file, so that no text is in two: what a module's docstrings say where they say enough, else its source;
and the packages' own pages. Files that mostly repeat lines of others are left out. As much source is taken as there is
documentation.
"""

import ast
import dataclasses
import hashlib
import json
import logging
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from hypenet_jax.data.sources import JsonLines

log = logging.getLogger("hypenet_jax")

FILE, FIELD = "text.jsonl", "text"
MOST_REPEATED = 0.3
LEAST_CHARACTERS, LEAST_ASCII, LEAST_ENGLISH = 1500, 0.97, 0.12
PAGES = {".md", ".rst", ".txt"}
EXCLUDED = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"}
LONG_LINE = 40  # shorter ones repeat by chance
ENGLISH = re.compile(
    r"\b(?:the|of|and|to|in|a|is|that|for|it|as|be|with|on|by|this|are|or|an|if|from|at|not|can|which|when|will|have"
    r"|has|was|but|its|all|you|we|they|their|one|may|there|than|into|used|using|only)\b"
)

Kind = Literal["documentation", "source"]


@dataclasses.dataclass(frozen=True)
class Page:
    """A document: the path of its file below its root, what it is, and its text."""

    name: str
    kind: Kind
    text: str


def installed_folders() -> tuple[Path, ...]:
    """The standard library's and the packages' folder of the running interpreter."""
    paths = sysconfig.get_paths()
    return Path(paths["stdlib"]), Path(paths["purelib"])


def write_installed_text(target: Path, folders: Iterable[Path]) -> JsonLines:
    """Writes `target/text.jsonl`, a line {"name", "kind", "text"} for each document; one that is there is kept.

    Args:
      folders: roots that are read, files of each in the order of their names.
    Raises:
      FileNotFoundError: no file below the folders is text enough.
    """
    path, folders = target / FILE, tuple(folders)
    if not path.exists():
        pages = list(_balanced(_without_repeats(_pages(folders))))
        if not pages:
            raise FileNotFoundError(
                f"no documentation or source below {[*map(str, folders)]}; name folders of Python packages"
            )
        target.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(vars(page)) + "\n" for page in pages), encoding="utf-8")
        new.replace(path)
        size = sum(len(page.text) for page in pages)
        log.info("%s: %d documents, %.1f million characters", path, len(pages), size / 1e6)
    return JsonLines(str(target), (FILE,), FIELD)


def _pages(folders: Iterable[Path]) -> Iterator[Page]:
    for root in folders:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if path.suffix not in PAGES | {".py"} or EXCLUDED.intersection(name.parts):
                continue
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if page := _page(f"{root.name}/{name.as_posix()}", path.suffix, text):
                yield page


def _page(name: str, suffix: str, text: str) -> Page | None:
    """The document of a file; None where it holds too little."""
    said = text if suffix in PAGES else docstrings(text)
    if _is_text(said) and _english(said) >= LEAST_ENGLISH:
        return Page(name, "documentation", said)
    if suffix == ".py" and _is_text(text):
        return Page(name, "source", text)
    return None


def docstrings(source: str) -> str:
    """What the docstrings of a Python file say, each below the dotted name of what it documents."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    return "\n\n".join(_docstrings(tree, ()))


def _docstrings(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield "\n\n".join(([".".join(names)] if names else []) + [text])
        for child in node.body:
            if name := getattr(child, "name", None):
                yield from _docstrings(child, (*names, name))


def _is_text(text: str) -> bool:
    return len(text) >= LEAST_CHARACTERS and len(text.encode()) <= len(text) / LEAST_ASCII


def _english(text: str) -> float:
    """Share of common English words among the words."""
    text = text.lower()
    return len(ENGLISH.findall(text)) / max(1, len(re.findall(r"[a-z]+", text)))


def _without_repeats(pages: Iterable[Page]) -> Iterator[Page]:
    """Pages at most three tenths of whose long lines, by characters, stood in an earlier one."""
    seen: set[int] = set()
    for page in pages:
        lines = {line for line in map(str.strip, page.text.splitlines()) if len(line) >= LONG_LINE}
        digests = {line: int(hashlib.md5(line.encode()).hexdigest()[:15], 16) for line in lines}
        repeated = sum(len(line) for line in lines if digests[line] in seen)
        seen.update(digests.values())
        if repeated <= MOST_REPEATED * sum(map(len, lines)):
            yield page


def _balanced(pages: Iterable[Page]) -> Iterator[Page]:
    """All documentation, and in an order that only names decide as much source."""
    pages = list(pages)
    documentation = [page for page in pages if page.kind == "documentation"]
    source = [page for page in pages if page.kind == "source"]
    source.sort(key=lambda page: hashlib.sha256(page.name.encode()).digest())
    yield from documentation
    left = sum(len(page.text) for page in documentation)
    for page in source:
        if len(page.text) <= left:
            left -= len(page.text)
            yield page
