"""One small conversion, interrupted in its last two stages, that the tests of this folder look at or copy."""

import dataclasses
import pathlib
import shutil

import jax
import pytest
from tiny_chain import chain, write_text

from hypenet_jax.config import HaloConfig
from hypenet_jax.run import convert
from hypenet_jax.train.errors import Preempted


@pytest.fixture(autouse=True, scope="package")
def compiled_once(tmp_path_factory: pytest.TempPathFactory):
    """Equal programs of different runs are compiled once, and none for speed."""
    cache = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: jax.config.values[name] for name in cache}
    for name, value in cache.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished conversion, and how often it was cut off on the way."""

    text: pathlib.Path
    folder: pathlib.Path
    config: HaloConfig
    interruptions: int


@pytest.fixture(scope="package")
def done(tmp_path_factory: pytest.TempPathFactory, compiled_once) -> Done:
    """The same call again and again; distillation and finetuning are stopped after their first step."""
    place = tmp_path_factory.mktemp("chain")
    text, folder = write_text(place / "text"), place / "run"
    config, interruptions = chain(text, folder), 0
    for name in ("teacher", "align", "select"):
        convert(config, only=name)
    while True:
        try:
            assert convert(config, stop=lambda step: step == 1)
            return Done(text, folder, config, interruptions)
        except Preempted:
            interruptions += 1


@pytest.fixture
def copy(done: Done, tmp_path: pathlib.Path) -> HaloConfig:
    """The finished conversion in a folder that a test may change."""
    shutil.copytree(done.folder, tmp_path / "run")
    return chain(done.text, tmp_path / "run")
