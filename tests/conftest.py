"""Eight virtual CPU devices, strict rank promotion, programs compiled once a run, and the marker `brief`."""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # its compiler needs no GPU
# In the environment, so that workers and the processes that tests start share what one of them compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-by-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Where transformers copies the code of a folder that it runs, else to the home directory.
os.environ.setdefault("HF_MODULES_CACHE", os.environ["JAX_COMPILATION_CACHE_DIR"] + "/transformers")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
ALL_BRIEF = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"  # as `make test-fast` sets it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A brief test, with the fixtures that it is the first to need, whatever their scope, compiles in half the time."""
    brief = ALL_BRIEF or item.get_closest_marker("brief") is not None
    jax.config.update("jax_disable_most_optimizations", brief)
    outcome = yield
    jax.config.update("jax_disable_most_optimizations", ALL_BRIEF)
    return outcome


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def in_the_repository(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Shipped configs are found by their paths, and find each other."""
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.syspath_prepend(request.config.rootpath)


@pytest.fixture
def put_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> Callable[[pathlib.Path, str], pathlib.Path]:
    """Copies a folder to where `hf download NAME` would leave it, links to blobs; returns the snapshot."""
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(folder: pathlib.Path, name: str) -> pathlib.Path:
        model = cache / f"models--{name.replace('/', '--')}"
        snapshot, blobs = model / "snapshots" / commit, model / "blobs"
        shutil.copytree(folder, blobs)
        snapshot.mkdir(parents=True)
        for file in blobs.iterdir():
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
        (model / "refs").mkdir()
        for ref in ("main", "v1.0"):
            (model / "refs" / ref).write_text(commit)
        return snapshot

    return put
