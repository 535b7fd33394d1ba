"""A checkpoint folder to damage."""

import pathlib

import pytest
from tiny_models import QWEN3

from hypenet_jax.testing import random_params
from hypenet_jax.weights import save_hf


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small untied Qwen3 in three files."""
    folder = tmp_path / "checkpoint"
    save_hf(folder, QWEN3, random_params(QWEN3), dtype="float32", max_shard_bytes=20_000)
    return folder
