"""Who may import whom, and the few rules of the house that a reader of the files can check."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

import pallas_kernels

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("hypenet_jax", "pallas_kernels", "launch", "configs")
    for path in (ROOT / folder).rglob("*.py")
)

# Room: what it may import besides itself. A name with a dot is that module (or package) alone.
MAY_IMPORT = {
    "pallas_kernels": (),
    "axes": (),
    "chips": (),
    "fingerprint": (),
    "runtime": (),
    "config_file": (),
    "sharding": ("axes",),
    "data": ("axes",),
    "losses": ("axes", "sharding", "pallas_kernels"),
    "model": ("axes", "sharding", "pallas_kernels"),
    "weights": ("axes", "model", "sharding"),
    "generation": (
        *("axes", "fingerprint", "runtime", "sharding", "data", "model", "weights"),
        "pallas_kernels",
    ),
    "train": ("axes", "fingerprint", "sharding", "data.batch"),
    "train.stage": ("axes", "data.batch", "losses"),
    "halo": ("axes", "data.batch", "losses", "model", "train.stage"),
}
ROOMS = tuple(name for name in MAY_IMPORT if "." not in name)
# While rooms move: these may still import each other.
MOVING = ("evals", "convert", "config")
MAY_IMPORT |= {name: (*ROOMS, *MOVING) for name in MOVING}
MAY_IMPORT |= {
    "plan": (*ROOMS, *MOVING),
    "front door": ("model", "weights", "generation"),
    "configs": (*ROOMS, *MOVING, "plan.config"),
    "launch": (*ROOMS, *MOVING, "plan"),
}

MESH_AXES = {"fsdp", "tensor", "sequence"}
NAMES_FOR_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def short(module: str) -> str:
    """hypenet_jax.model.decoder -> model.decoder; the package itself is the front door."""
    return "front door" if module == "hypenet_jax" else module.removeprefix("hypenet_jax.")


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return short(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def imports(path: pathlib.Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file; `from a import b` counts as a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                file = ROOT / whole.replace(".", "/")
                yield whole if file.with_suffix(".py").exists() or file.is_dir() else node.module


def ours(module: str) -> bool:
    return module.split(".")[0] in {"hypenet_jax", "pallas_kernels", "launch", "configs"}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_room_imports_only_rooms_below_it(path):
    module = module_of(path)
    rules = [room for room in MAY_IMPORT if within(module, room)]
    assert rules, f"{module} belongs to no room"
    allowed = MAY_IMPORT[max(rules, key=len)]
    home = module.split(".")[0]
    for imported in map(short, filter(ours, imports(path))):
        assert any(within(imported, room) for room in (home, *allowed)), (
            f"{module} imports {imported}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_file_imports_flax_nnx(path):
    assert not any(within(name, "flax.nnx") for name in imports(path))
    assert "nnx" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_has_a_room_and_fits_a_few_screens(path):
    assert not NAMES_FOR_NOTHING & set(module_of(path).split("."))
    assert len(path.read_text().splitlines()) <= 400


def literals(path: pathlib.Path) -> Iterator[str]:
    """String literals that are code: not docstrings and not other bare strings."""
    tree = ast.parse(path.read_text())
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
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pallas_kernels":
            assert {alias.name for alias in node.names} <= set(pallas_kernels.__all__)
        elif isinstance(node, ast.ImportFrom):
            assert node.module in COMMANDS or not within(node.module, "pallas_kernels")
        elif isinstance(node, ast.Import):
            assert not any(within(alias.name, "pallas_kernels") for alias in node.names)
