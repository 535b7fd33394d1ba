"""Who may import whom, and the few rules of the house that a reader of the files can check."""

import ast
import collections
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

import pallas_kernels

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("hypenet_jax", "pallas_kernels", "launch", "configs")
    for path in (ROOT / folder).rglob("*.py")
)

ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)


def table() -> dict[str, tuple[str, ...]]:
    """Room: what it may import besides itself, as BUILD.md says. A name with a dot is that module alone."""
    text = (ROOT / "BUILD.md").read_text(encoding="utf-8")
    rows = ROW.findall(text.split("| room | what is in it | may import |")[1].split("\n\n")[0])
    return {
        room: () if cell == "nothing of ours" else tuple(cell.split(", ")) for room, cell in rows
    }


MAY_IMPORT = table()
FILES_IN_A_FOLDER, LINES_IN_A_FILE = 14, 300
MESH_AXES = {"fsdp", "tensor", "sequence"}
NAMES_FOR_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def short(module: str) -> str:
    """hypenet_jax.model.decoder -> model.decoder; the package itself keeps its name."""
    return module.removeprefix("hypenet_jax.")


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return short(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: pathlib.Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file; `from a import b` counts as a.b where that is a module."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The code of an exported folder is loaded from there, not from the package.
            assert node.level == 0 or path.parent.name == "transformers_code", path
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                file = ROOT / whole.replace(".", "/")
                yield whole if file.with_suffix(".py").exists() or file.is_dir() else node.module


def ours(module: str) -> bool:
    return module.split(".")[0] in {"hypenet_jax", "pallas_kernels", "launch", "configs"}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    rooms = [room for room in MAY_IMPORT if within(module, room)]
    assert rooms, f"{module} belongs to no room"
    return max(rooms, key=len)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_room_imports_only_rooms_below_it(path):
    module = module_of(path)
    allowed, home = MAY_IMPORT[room_of(module)], module.split(".")[0]
    for imported in map(short, filter(ours, imports(path))):
        assert any(within(imported, room) for room in (home, *allowed)), (
            f"{module} imports {imported}"
        )


def test_a_room_imports_what_the_table_says_that_it_may():
    unused = {(room, name) for room, allowed in MAY_IMPORT.items() for name in allowed}
    for path in SOURCES:
        room = room_of(module_of(path))
        for imported in map(short, filter(ours, imports(path))):
            unused -= {(room, name) for name in MAY_IMPORT[room] if within(imported, name)}
    assert not unused


def test_a_room_may_import_only_rooms_that_stand_above_it_in_the_table():
    """So no two rooms, and no circle of rooms, can import each other."""
    above: list[str] = []
    for room, allowed in MAY_IMPORT.items():
        for name in allowed:
            assert any(within(name, other) for other in above), f"{room} may import {name}"
        above.append(room)


def test_no_folder_holds_more_than_a_dozen_files_or_so():
    files = (path for path in SOURCES if path.is_relative_to(ROOT / "hypenet_jax"))
    folders = collections.Counter(path.parent for path in files)
    assert not [folder for folder, files in folders.items() if files > FILES_IN_A_FOLDER]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_file_imports_flax_nnx(path):
    assert not any(within(name, "flax.nnx") for name in imports(path))
    assert "nnx" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_has_a_room_and_fits_a_few_screens(path):
    assert not NAMES_FOR_NOTHING & set(module_of(path).split("."))
    assert len(path.read_text().splitlines()) <= LINES_IN_A_FILE


def literals(path: pathlib.Path) -> Iterator[str]:
    """String literals that are code: not docstrings and not other bare strings."""
    tree = parsed(path)
    bare = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_sharding_file_names_mesh_axes(path):
    if module_of(path) != "sharding":
        assert not MESH_AXES & set(literals(path))


def test_every_rule_speaks_of_a_room_that_exists():
    modules = [module_of(path) for path in SOURCES]
    for room in MAY_IMPORT:
        assert any(within(module, room) for module in modules), room


COMMANDS = {"pallas_kernels.compile"}  # its environment is that of the program planner, too


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_kernels_are_imported_from_their_package_alone(path):
    if within(module_of(path), "pallas_kernels"):
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "pallas_kernels":
            assert {alias.name for alias in node.names} <= set(pallas_kernels.__all__)
        elif isinstance(node, ast.ImportFrom):
            assert node.module in COMMANDS or not within(node.module, "pallas_kernels")
        elif isinstance(node, ast.Import):
            assert not any(within(alias.name, "pallas_kernels") for alias in node.names)
