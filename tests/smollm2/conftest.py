"""SmolLM2-135M-Instruct from its package: the folder made of it, and a student after 20 steps of stages 1 and 2."""

import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from recorded import GGUF, read_recorded
from twenty_steps import config

from hypenet_jax.config import HaloConfig

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "runs/smollm2_135m/package"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished conversion, and the largest resident memory of its process in GiB."""

    config: HaloConfig
    gibibytes: float


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    return read_recorded()


@pytest.fixture(scope="session")
def teacher(scratch: pathlib.Path) -> pathlib.Path:
    """The Hugging Face folder that `launch.convert` makes of the package's file."""
    source, folder = PACKAGE / GGUF, scratch / "teacher"
    if not source.exists():
        pytest.skip(f"no {source.relative_to(ROOT)}: `make test-smollm2` fetches it where it can")
    run("launch.convert", source, folder)
    return folder


@pytest.fixture(scope="session")
def trained(teacher: pathlib.Path, scratch: pathlib.Path) -> Trained:
    folder = scratch / "run"
    chain = ("tests/smollm2/twenty_steps.py", "--teacher", teacher, "--run-dir", folder)
    run("launch.halo", *chain)
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Trained(config(str(teacher), str(folder)), kibibytes / 2**20)


@pytest.fixture(scope="session")
def scratch() -> Iterator[pathlib.Path]:
    """A folder for gigabytes, which go with the last test."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def run(module: str, *words: str | pathlib.Path) -> None:
    """Runs a command on one device, as a user does."""
    variables = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
