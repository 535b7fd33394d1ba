import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BATCH, TIME, VOCABULARY

from hypenet_jax.model.generate import Sampling, draw, generate
from hypenet_jax.model.stacking import stack_layers

NEW = 5
LENGTHS = (16, 9, 4)


def greedy_by_hand(hybrid, tokens):
    """Each row's prompt continued by the likeliest token of a pass over everything so far."""
    table = np.asarray(hybrid.params["embed"]["embedding"])
    rows, at = np.zeros((BATCH, TIME), np.int32), np.asarray(LENGTHS)
    for row, prompt, n in zip(rows, tokens, LENGTHS, strict=True):
        row[:n] = prompt[:n]
    for step in range(NEW):
        hidden = hybrid.hidden(rows)[np.arange(BATCH), at + step - 1]
        rows[np.arange(BATCH), at + step] = np.argmax(hidden @ table.T, axis=-1)
    return np.stack([row[n : n + NEW] for row, n in zip(rows, LENGTHS, strict=True)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_generation_is_as_full_passes_whichever_side_is_padded(side, hybrid, tokens):
    prompts, real = np.zeros((2, BATCH, LENGTHS[0]), np.int32)
    for i, n in enumerate(LENGTHS):
        slots = slice(LENGTHS[0] - n, None) if side == "left" else slice(n)
        prompts[i, slots], real[i, slots] = tokens[i, :n], 1
    params = stack_layers(hybrid.params, hybrid.config)
    written = generate(hybrid.decoder, params, prompts, max_new_tokens=NEW, segment_ids=real)
    np.testing.assert_array_equal(written, greedy_by_hand(hybrid, tokens))


def test_a_row_that_stopped_is_filled_up(hybrid, tokens):
    free = generate(hybrid.decoder, hybrid.params, tokens[:, :16], max_new_tokens=NEW)
    stop = int(free[0, 1])
    written = generate(
        hybrid.decoder, hybrid.params, tokens[:, :16], max_new_tokens=NEW, stop_token=stop
    )
    for row, want in zip(written, free, strict=True):
        ends = np.flatnonzero(want == stop)
        end = ends[0] if len(ends) else NEW
        np.testing.assert_array_equal(row[:end], want[:end])
        assert np.all(row[end:] == stop)


def test_draws_stay_among_the_likeliest():
    logits = jnp.tile(jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])), (400, 1))
    keys = jax.random.split(jax.random.key(0), 400)
    seen = lambda sampling: set(np.unique(draw(logits, keys, sampling)).tolist())  # noqa: E731
    assert seen(Sampling()) == {0}
    assert seen(Sampling(temperature=1.0)) == {0, 1, 2, 3}
    assert seen(Sampling(temperature=1.0, top_k=2)) == {0, 1}
    assert seen(Sampling(temperature=1.0, top_p=0.6)) == {0, 1}
    share = np.mean(np.asarray(draw(logits, keys, Sampling(temperature=1.0))) == 0)
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("fields", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_senseless_sampling_is_refused(fields):
    with pytest.raises(ValueError, match="temperature >= 0"):
        Sampling(**fields)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": np.full((1, 4), VOCABULARY, np.int32)},
        {"segment_ids": np.zeros((1, 4), np.int32)},
        {"max_new_tokens": 0},
        {"sampling": Sampling(temperature=1.0)},
    ],
    ids=["unknown token", "empty prompt", "nothing to write", "draws without a key"],
)
def test_what_cannot_be_continued_is_refused(change, hybrid):
    arguments = {"prompts": np.ones((1, 4), np.int32), "max_new_tokens": 2} | change
    with pytest.raises(ValueError, match=r".+"):
        generate(hybrid.decoder, hybrid.params, **arguments)
