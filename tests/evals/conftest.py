"""A teacher and a student of two layers that compile in a moment, in memory and as folders with a tokenizer."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.config import CorpusConfig
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import TextFiles
from hypenet_jax.data.synthetic import Catalogue
from hypenet_jax.data.tokenizer import TrainedTokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.testing import tiny_teacher, write_folder

MOST = (9, 64)
CATALOGUE = Catalogue(first_id=32, classes=4, entries=16)
TEACHER = ModelConfig(
    vocab_size=32 + CATALOGUE.num_ids,
    d_model=32,
    d_mlp=64,
    mixers=(SoftmaxSpec(2, 1, 16, 1e4),) * 2,
    tie_embeddings=True,
)


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
    """All log probabilities of a model at tokens (and their positions and segments), which only tests may form.

    Rows are padded to one shape, so that it compiles once per model.
    """

    def every(eval_model: EvalModel, tokens, positions=None, segment_ids=None) -> np.ndarray:
        rows, time = tokens.shape
        whole = [
            np.broadcast_to(np.arange(time), tokens.shape) if positions is None else positions,
            np.ones_like(tokens) if segment_ids is None else segment_ids,
        ]
        padded = [
            np.pad(x, ((0, MOST[0] - rows), (0, MOST[1] - time))).astype(np.int32)
            for x in (tokens, *whole)
        ]
        result = _log_probs(eval_model.decoder, eval_model.params, *padded)
        return np.asarray(result, np.float64)[:rows, :time]

    return every


@pytest.fixture
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, 400).astype(np.int32)


@pytest.fixture
def catalogue() -> Catalogue:
    return CATALOGUE


# Of the models in folders: a vocabulary of words, then the catalogue.
WORDS = 280
WORD_CATALOGUE = Catalogue(first_id=WORDS, classes=4, entries=4)
WORD_TEACHER = tiny_teacher(WORDS + WORD_CATALOGUE.num_ids)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder, not to be changed, with "teacher" and "student" (Hugging Face) and "data" (a prepared corpus)."""
    place = tmp_path_factory.mktemp("folders")
    (place / "text").mkdir()
    for i in range(30):
        lines = [f"the {word} of file {i} is line {n}\n" for n in range(12) for word in "abc"]
        (place / "text" / f"{i}.txt").write_text("".join(lines), encoding="utf-8")
    words = TrainedTokenizer(WORDS, WORD_CATALOGUE.token_names())
    source = TextFiles(str(place / "text"), ("*.txt",))
    prepare(
        CorpusConfig(
            folder=str(place / "data"),
            source=source,
            tokenizer=words,
            block_length=32,
            heldout_fraction=0.3,
            seed=0,
        )
    )
    tokenizer = open_prepared(str(place / "data")).tokenizer()
    plans = {"teacher": WORD_TEACHER, "student": hypenet(WORD_TEACHER, (1,))}
    for seed, (name, config) in enumerate(plans.items()):
        write_folder(place / name, config, seed=seed, tokenizer=tokenizer)
    return place
