"""A small corpus on disk and what is prepared from it."""

from pathlib import Path

import pytest

from hypenet_jax.data.config import CorpusConfig
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared
from hypenet_jax.data.sources import TextFiles
from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.data.tokenizer import TrainedTokenizer


def write_texts(folder: Path, count: int) -> None:
    """Documents of 0 to a few hundred tokens, each different."""
    folder.mkdir()
    for number in range(count):
        words = " ".join(f"word{number}x{i}" for i in range(number * 7 % 60))
        (folder / f"text_{number:03d}.txt").write_text(f"{words}\n", encoding="utf-8")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> CorpusConfig:
    root = tmp_path_factory.mktemp("corpus")
    write_texts(root / "text", 60)
    return CorpusConfig(
        folder=str(root / "prepared"),
        source=TextFiles(str(root / "text"), ("*.txt",)),
        tokenizer=TrainedTokenizer(300, Catalogue(300).token_names()),
        block_length=32,
        heldout_fraction=0.2,
        seed=3,
    )


@pytest.fixture(scope="session")
def prepared(corpus) -> Prepared:
    return prepare(corpus)
