"""Codes stated in words: what a row holds, and that only a model that knows the code is credited."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.language import predictions
from hypenet_jax.evals.language.predictions import likelihoods
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.retrieval.passkey import PasskeyEvaluator
from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import transfer_mixers
from hypenet_jax.model.config import ModelConfig, aligned_spec
from hypenet_jax.model.decoder import Decoder, Output, init_params
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.model.stacking import unstack_layers

pytestmark = pytest.mark.brief

TEXT = "the access of words and codes is 12345 67890 and more of it. " * 50


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], TrainedTokenizer(290))


@pytest.fixture(scope="module")
def text(tokenizer):
    return tokenizer.encode(TEXT)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Says what followed the same eight tokens earlier in the row, or always the same token."""

    vocabulary: int
    knows: bool

    @property
    def config(self):
        return ModelConfig(
            vocab_size=self.vocabulary,
            d_model=8,
            d_mlp=8,
            mixers=(SoftmaxSpec(1, 1, 8),),
            tie_embeddings=True,
        )

    @property
    def dtype(self):
        return jnp.dtype(jnp.float32)

    def apply(self, variables, tokens, method=None, **options):
        if method is not None:
            return tokens
        last = jnp.stack([jnp.roll(tokens, shift, axis=1) for shift in range(8)], axis=-1)
        same = (last[:, :, None] == last[:, None]).all(axis=-1)
        earlier = jnp.argmax(jnp.tril(same, -1), axis=2)
        following = jnp.take_along_axis(jnp.roll(tokens, -1, axis=1), earlier, axis=1)
        return Output(jax.nn.one_hot(following if self.knows else 0 * tokens, self.vocabulary))


@pytest.mark.parametrize(("knows", "value"), [(True, 1.0), (False, 0.0)])
def test_only_a_model_that_knows_the_code_is_credited(tokenizer, text, knows, value):
    decoder = Oracle(tokenizer.vocab_size, knows)
    report = PasskeyEvaluator(rows=5, statements=2).measure(
        EvalModel("oracle", decoder, {}, tokenizer, text=text), 200, seed=0
    )
    assert report.value("passkey", "oracle", 200) == value
    assert report.rows[0].count == 5


def test_a_layer_that_is_swept_reads_codes_like_any_model_and_long_rows_whole(monkeypatch):
    monkeypatch.setattr(predictions, "READ_PART", 16)
    config = ModelConfig(
        vocab_size=40,
        d_model=8,
        d_mlp=8,
        mixers=(SoftmaxSpec(1, 1, 8, rope_theta=1e4),),
        tie_embeddings=True,
    )
    teacher, key = Decoder(config, jnp.float32), jax.random.key(0)
    params, spec = init_params(teacher, key), aligned_spec(config)
    mixers = transfer_mixers(config, unstack_layers(params), spec, key)
    swept = EvalModel("swept", SweptDecoder(teacher, spec), swept_params(params, mixers, ()))
    rows = [*np.random.default_rng(0).integers(0, 40, (2, 25))]
    found, expected = (
        dict(likelihoods(model, rows, (3, 5), width=24))
        for model in (swept, EvalModel("itself", teacher, params))
    )
    for row in (0, 1):
        np.testing.assert_allclose(found[row], expected[row], rtol=1e-5)


def row_of(tokenizer, text, length, statements):
    model = EvalModel("none", Oracle(tokenizer.vocab_size, False), {}, tokenizer, text=text)
    return PasskeyEvaluator(statements=statements).row(model, length, np.random.default_rng(0))


def test_the_code_is_stated_once_before_it_is_asked_for(tokenizer, text):
    row, answer = row_of(tokenizer, text, 200, 3)
    assert len(row) == 201  # the last token is never read
    words = tokenizer.decode(row)
    code = tokenizer.decode(row[-answer:]).strip()
    assert len(code) == 5
    assert words.count(code) == 2
    assert words.endswith(f" is {code}")
    assert words.count("The access code of") == 4


def test_rows_too_short_for_the_statements_are_refused(tokenizer, text):
    with pytest.raises(ValueError, match="state fewer codes"):
        row_of(tokenizer, text, 60, 4)
