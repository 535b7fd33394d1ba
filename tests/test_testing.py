"""hypenet_jax.testing: what users' own tests may rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax import Decoder, init_params, load_hf, stack_layers
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.testing import (
    random_params,
    tiny_student,
    tiny_student_folder,
    tiny_teacher,
    tiny_teacher_folder,
    tiny_tokenizer,
)

pytestmark = pytest.mark.brief


@pytest.mark.parametrize(
    ("write", "config"),
    [(tiny_teacher_folder, tiny_teacher()), (tiny_student_folder, tiny_student())],
)
def test_a_folder_has_a_model_and_a_tokenizer_that_fit_each_other(write, config, tmp_path):
    folder = write(tmp_path / "model")
    decoder, params = load_hf(folder)
    tokenizer = load_tokenizer(folder)
    assert decoder.config == config
    assert tokenizer.vocab_size == config.vocab_size
    tokens = tokenizer.encode("the fox sleeps, ω\n")
    assert tokenizer.decode(tokens) == "the fox sleeps, ω\n"
    output = jax.jit(decoder.apply)({"params": params}, jnp.asarray(tokens[None]))
    assert np.isfinite(output.hidden).all()


def test_weights_are_all_random_and_the_same_for_the_same_seed():
    first, again, other = (random_params(tiny_student(), seed) for seed in (0, 0, 1))
    leaves = (map(np.asarray, jax.tree.leaves(params)) for params in (first, again, other))
    for one, same, different in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.all(one != different)
        assert np.std(one) > 0.01
    decoder = Decoder(tiny_student())
    expected = jax.eval_shape(functools.partial(init_params, decoder), jax.random.key(0))
    assert jax.tree.structure(expected) == jax.tree.structure(stack_layers(first, tiny_student()))


def test_reserved_tokens_come_last():
    tokenizer = tiny_tokenizer(260, ("<a>", "<b>"))
    assert [tokenizer.id_of("<a>"), tokenizer.id_of("<b>")] == [260, 261]
