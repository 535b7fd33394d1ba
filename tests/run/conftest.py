"""One small conversion, interrupted in the middle, that the tests of this folder look at or copy."""

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
def compiled_fast():
    """Programs of this folder run for a moment: compiling them for speed does not pay."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished conversion."""

    text: pathlib.Path
    folder: pathlib.Path
    config: HaloConfig


@pytest.fixture(scope="package")
def done(tmp_path_factory: pytest.TempPathFactory, compiled_fast) -> Done:
    """A conversion whose distillation was cut off after its first step; then the same call again."""
    place = tmp_path_factory.mktemp("chain")
    text, folder = write_text(place / "text"), place / "run"
    config = chain(text, folder)
    with pytest.raises(Preempted, match="stopped after step 1 of 2; saved"):
        convert(config, stop=lambda step: step == 1 and (folder / "distill").exists())
    assert convert(config)
    return Done(text, folder, config)


@pytest.fixture
def copy(done: Done, tmp_path: pathlib.Path) -> HaloConfig:
    """The finished conversion in a folder that a test may change."""
    shutil.copytree(done.folder, tmp_path / "run")
    return chain(done.text, tmp_path / "run")
