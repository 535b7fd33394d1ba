"""A teacher and a student of two layers that compile in a moment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec

MOST = (9, 64)
CATALOGUE = Catalogue(first_id=32, classes=4, entries=16)
TEACHER = ModelConfig(32 + CATALOGUE.num_ids, 32, 64, (SoftmaxSpec(2, 1, 16, 1e4),) * 2, True)


def _subject(name: str, config: ModelConfig, seed: int) -> EvalModel:
    start = Initialization(std=0.2, embedding_std=0.5)
    decoder = Decoder(config, jnp.float32, start=start)
    init = jax.jit(init_params, static_argnums=0)
    return EvalModel(name, decoder, init(decoder, jax.random.key(seed)))


@pytest.fixture(scope="session")
def teacher() -> EvalModel:
    return _subject("teacher", TEACHER, 0)


@pytest.fixture(scope="session")
def student() -> EvalModel:
    return _subject("student", hypenet(TEACHER, (1,)), 1)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(decoder, params, tokens, positions, segment_ids):
    hidden = decoder.apply({"params": params}, tokens, positions, segment_ids).hidden
    return jax.nn.log_softmax(decoder.apply({"params": params}, hidden, method="logits"), axis=-1)


@pytest.fixture
def log_probs():
    """All log probabilities of a subject at tokens (and their positions and segments), which only tests may form.

    Rows are padded to one shape, so that it compiles once per model.
    """

    def every(subject: EvalModel, tokens, positions=None, segment_ids=None) -> np.ndarray:
        rows, time = tokens.shape
        whole = [
            np.broadcast_to(np.arange(time), tokens.shape) if positions is None else positions,
            np.ones_like(tokens) if segment_ids is None else segment_ids,
        ]
        padded = [
            np.pad(x, ((0, MOST[0] - rows), (0, MOST[1] - time))).astype(np.int32)
            for x in (tokens, *whole)
        ]
        result = _log_probs(subject.decoder, subject.params, *padded)
        return np.asarray(result, np.float64)[:rows, :time]

    return every


@pytest.fixture
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, 400).astype(np.int32)


@pytest.fixture
def catalogue() -> Catalogue:
    return CATALOGUE
