"""Documents of a row do not see each other, and padding is as if it were not there."""

import numpy as np
import pytest
from tiny_decoders import BATCH, TIME, VOCABULARY

pytestmark = pytest.mark.brief

LENGTHS = (7, 9, 8)


def documents(seed=3):
    draws = np.random.default_rng(seed)
    return [draws.integers(0, VOCABULARY, n).astype(np.int32) for n in LENGTHS]


def alone(model, texts):
    """Hidden states of each text on its own: it stands first in a row, and what follows cannot reach it."""
    rows = np.zeros((BATCH, TIME), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    hidden = model.hidden(rows)
    return [hidden[i, : len(text)] for i, text in enumerate(texts)]


def assert_close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (9, 4, 9)], ids=["distinct", "repeated"])
def test_documents_in_a_row_are_as_each_alone(numbers, model):
    texts = documents()
    tokens = np.tile(np.concatenate(texts), (BATCH, 1))
    segment_ids = np.tile(np.repeat(numbers, LENGTHS), (BATCH, 1)).astype(np.int32)
    assert_close(model.hidden(tokens, None, segment_ids)[1], np.concatenate(alone(model, texts)))


@pytest.mark.parametrize("where", ["left", "right", "interior"])
def test_padding_changes_nothing_wherever_it_stands(where, model):
    texts = documents()
    tokens = np.full((BATCH, TIME), 5, np.int32)
    segment_ids = np.zeros((BATCH, TIME), np.int32)
    for i, text in enumerate(texts):
        length = len(text)
        slots = {
            "left": np.arange(TIME - length, TIME),
            "right": np.arange(length),
            "interior": np.sort(np.random.default_rng(i).permutation(TIME)[:length]),
        }[where]
        tokens[i, slots], segment_ids[i, slots] = text, 1
    hidden = model.hidden(tokens, None, segment_ids)
    assert np.all(np.isfinite(hidden))
    for i, expected in enumerate(alone(model, texts)):
        assert_close(hidden[i, segment_ids[i] == 1], expected)


def test_given_positions_win(hybrid, tokens):
    """The same tokens at other places: the logit scale sees where they are."""
    ones = np.ones_like(tokens)
    counted = np.tile(np.arange(TIME, dtype=np.int32), (BATCH, 1))
    assert_close(hybrid.hidden(tokens, counted, ones), hybrid.hidden(tokens, None, ones))
    far = hybrid.hidden(tokens, counted + 50, ones)
    assert np.abs(far - hybrid.hidden(tokens, None, ones)).max() > 0.01


def test_rotary_positions_are_relative(teacher, tokens):
    ones = np.ones_like(tokens)
    counted = np.tile(np.arange(TIME, dtype=np.int32), (BATCH, 1))
    near, far = (teacher.hidden(tokens, counted + start, ones) for start in (0, 50))
    assert_close(near, far, atol=1e-4)
    spread = teacher.hidden(tokens, 3 * counted, ones)
    assert np.abs(spread - near).max() > 0.01
