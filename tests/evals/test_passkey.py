"""Codes stated in words: what a row holds, and that only a model that knows the code is credited."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.retrieval.passkey import _row, passkey_retrieval
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Output
from hypenet_jax.model.mixers import SoftmaxSpec

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
    """Says the token that really follows, or always the same one."""

    vocabulary: int
    knows: bool

    @property
    def config(self):
        return ModelConfig(self.vocabulary, 8, 8, (SoftmaxSpec(1, 1, 8),), True)

    @property
    def dtype(self):
        return jnp.dtype(jnp.float32)

    def apply(self, variables, tokens, method=None):
        if method is not None:
            return tokens
        following = jnp.roll(tokens, -1, axis=1) if self.knows else jnp.zeros_like(tokens)
        return Output(jax.nn.one_hot(following, self.vocabulary))


@pytest.mark.parametrize(("knows", "value"), [(True, 1.0), (False, 0.0)])
def test_only_a_model_that_knows_the_code_is_credited(tokenizer, text, knows, value):
    subject = EvalModel("oracle", Oracle(tokenizer.vocab_size, knows), {})
    options = {"length": 200, "num_rows": 5, "num_statements": 2, "seed": 0}
    report = passkey_retrieval(subject, tokenizer, text, tokens_per_batch=400, **options)
    assert report.value("retrieval", "oracle", 200) == value
    assert report.rows[0].count == 5


def test_the_code_is_stated_once_before_it_is_asked_for(tokenizer, text):
    row, answer = _row(tokenizer, text, 200, 3, np.random.default_rng(0))
    assert len(row) == 200
    words = tokenizer.decode(row)
    code = tokenizer.decode(row[-answer:]).strip()
    assert len(code) == 5
    assert words.count(code) == 2
    assert words.endswith(f" is {code}")
    assert words.count("The access code of") == 4


def test_rows_too_short_for_the_statements_are_refused(tokenizer, text):
    with pytest.raises(ValueError, match="state fewer codes"):
        _row(tokenizer, text, 60, 4, np.random.default_rng(0))
