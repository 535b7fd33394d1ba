"""One small conversion, interrupted in the middle, that the tests of this folder look at or copy."""

import dataclasses
import fcntl
import pathlib
import shutil

import pytest
from tiny_chain import chain, write_text

from hypenet_jax.config import HaloConfig
from hypenet_jax.convert import convert
from hypenet_jax.train.errors import Preempted


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished conversion, to be read only: all tests and all processes that run them share it."""

    text: pathlib.Path
    folder: pathlib.Path

    @property
    def config(self) -> HaloConfig:
        return chain(self.text, self.folder)

    def copied(self, folder: pathlib.Path) -> HaloConfig:
        """The conversion in another folder, which may change."""
        shutil.copytree(self.folder, folder)
        return chain(self.text, folder)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Done:
    """A conversion whose distillation was cut off after its first step; then the same call again."""
    place = tmp_path_factory.getbasetemp()
    place = (place if worker_id == "master" else place.parent) / "chain"
    place.mkdir(exist_ok=True)
    found, whole = Done(place / "text", place / "run"), place / "whole"
    with (place / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not whole.exists():
            _make(found)
            whole.touch()
    return found


def _make(done: Done) -> None:
    write_text(done.text)
    with pytest.raises(Preempted, match="stopped after step 1 of 2; saved"):
        convert(done.config, stop=lambda step: step == 1 and (done.folder / "distill").exists())
    assert convert(done.config)


@pytest.fixture
def copy(done: Done, tmp_path: pathlib.Path) -> HaloConfig:
    """The finished conversion in a folder that a test may change."""
    return done.copied(tmp_path / "run")
