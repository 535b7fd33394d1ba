"""A teacher and a student of two layers that compile in a moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.evals.subject import Subject
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec

CATALOGUE = Catalogue(first_id=32, classes=4, entries=16)
TEACHER = ModelConfig(32 + CATALOGUE.num_ids, 32, 64, (SoftmaxSpec(2, 1, 16, 1e4),) * 2, True)


def _subject(name: str, config: ModelConfig, seed: int) -> Subject:
    start = Initialization(std=0.2, embedding_std=0.5)
    decoder = Decoder(config, jnp.float32, start=start)
    return Subject(name, decoder, init_params(decoder, jax.random.key(seed)))


@pytest.fixture(scope="session")
def teacher() -> Subject:
    return _subject("teacher", TEACHER, 0)


@pytest.fixture(scope="session")
def student() -> Subject:
    return _subject("student", hypenet(TEACHER, (1,)), 1)


@pytest.fixture
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, 400).astype(np.int32)


@pytest.fixture
def catalogue() -> Catalogue:
    return CATALOGUE
