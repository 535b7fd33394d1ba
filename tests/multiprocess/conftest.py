"""Text for the processes, and the processes of one test."""

import pathlib
import runpy
from collections.abc import Iterator

import pytest
from processes import ROOT, Start, starting


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    chain = runpy.run_path(str(ROOT / "tests" / "convert" / "tiny_chain.py"))
    return chain["write_text"](tmp_path_factory.mktemp("pods") / "text")


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    """start(words of process 0, words of process 1, ...): eight devices in all, joined where there are several."""
    with starting(tmp_path) as begin:
        yield begin
