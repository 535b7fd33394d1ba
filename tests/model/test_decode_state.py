"""A text in pieces is the text as a whole, whatever the pieces, the padding and the documents."""

import itertools

import chex
import jax
import numpy as np
import pytest
from tiny_decoders import BATCH, CAPACITY, TIME

pytestmark = pytest.mark.brief

LENGTHS = np.asarray([24, 17, 9])
ATOL = 1e-5


def padded(pieces, side):
    """Pieces of different lengths (one a row) as "B T" tokens and segments, 0 where padded."""
    tokens, segment_ids = np.full((BATCH, TIME), 3, np.int32), np.zeros((BATCH, TIME), np.int32)
    for i, piece in enumerate(pieces):
        start = TIME - len(piece) if side == "left" else 0
        tokens[i, start : start + len(piece)] = piece
        segment_ids[i, start : start + len(piece)] = 1
    return tokens, segment_ids


def in_pieces(model, rows, cuts, side):
    """Hidden states of each row's tokens when they come in pieces cut at these shares of the row's length."""
    state, parts = model.empty(), [[] for _ in rows]
    for start, stop in itertools.pairwise(cuts):
        pieces = [row[int(start * len(row)) : int(stop * len(row))] for row in rows]
        tokens, segment_ids = padded(pieces, side)
        hidden, state = model.go_on(state, tokens, segment_ids)
        for i in range(BATCH):
            parts[i].append(hidden[i, segment_ids[i] == 1])
    return [np.concatenate(each) for each in parts], state


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cuts", [(0, 1), (0, 0.1, 1), (0, 0.5, 1), (0, 0.3, 0.35, 0.8, 1)])
def test_rows_of_different_lengths_in_pieces_are_as_the_whole(cuts, side, model, tokens):
    rows = [row[:n] for row, n in zip(tokens, LENGTHS, strict=True)]
    parts, state = in_pieces(model, rows, cuts, side)
    whole = model.hidden(tokens)
    for part, expected, n in zip(parts, whole, LENGTHS, strict=True):
        np.testing.assert_allclose(part, expected[:n], atol=ATOL, rtol=0)
    np.testing.assert_array_equal(state.lengths, LENGTHS)


@pytest.mark.extended
@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_and_single_steps_are_as_the_whole(side, model, tokens):
    prefill = np.asarray([15, 8, 2])
    state = model.empty()
    _, state = model.go_on(
        state, *padded([r[:n] for r, n in zip(tokens, prefill, strict=True)], side)
    )
    whole = model.hidden(tokens)
    for step in range(4):
        at = prefill + step
        ones = np.ones((BATCH, 1), np.int32)
        hidden, state = model.go_on(state, tokens[np.arange(BATCH), at][:, None], ones)
        np.testing.assert_allclose(hidden[:, 0], whole[np.arange(BATCH), at], atol=ATOL, rtol=0)


def test_a_row_that_pauses_goes_on_where_it_stopped(hybrid, tokens):
    """Rows 0 and 2 have only padding in the second call."""
    segment_ids = np.zeros((BATCH, TIME), np.int32)
    segment_ids[:, :10] = 1
    _, state = hybrid.go_on(hybrid.empty(), tokens, segment_ids)
    middle = np.roll(tokens, -10, axis=1)
    pause = segment_ids * np.asarray([[0], [1], [0]], np.int32)
    _, state = hybrid.go_on(state, middle, pause)
    hidden, _ = hybrid.go_on(state, middle, segment_ids)
    whole = hybrid.hidden(tokens)
    np.testing.assert_allclose(hidden[[0, 2], :10], whole[[0, 2], 10:20], atol=ATOL, rtol=0)


def test_a_new_segment_number_forgets_the_old_document(model, tokens):
    ones = np.ones_like(tokens)
    _, state = model.go_on(model.empty(), tokens[:, ::-1], np.where(np.arange(TIME) < 12, ones, 0))
    fresh = np.where(np.arange(TIME) < 20, 2 * ones, 0)
    hidden, state = model.go_on(state, tokens, fresh)
    whole = model.hidden(tokens)
    np.testing.assert_allclose(hidden[:, :20], whole[:, :20], atol=ATOL, rtol=0)
    hidden, _ = model.go_on(
        state, np.roll(tokens, -20, axis=1), np.where(np.arange(TIME) < 4, 2 * ones, 0)
    )
    np.testing.assert_allclose(hidden[:, :4], whole[:, 20:], atol=ATOL, rtol=0)


def test_a_row_past_its_capacity_gives_nan_and_the_others_go_on(model, tokens):
    _, state = model.go_on(model.empty(), tokens, np.ones_like(tokens))
    second = np.ones_like(tokens) * (np.arange(TIME)[None] < np.asarray([[24], [4], [16]]))
    hidden, state = model.go_on(state, tokens, second.astype(np.int32))
    assert list(state.lengths) == [48, 28, 40]
    assert CAPACITY == 40
    assert np.all(np.isnan(hidden[0]))
    assert np.all(np.isfinite(hidden[1:]))
    ones = np.ones((BATCH, 1), np.int32)
    hidden, _ = model.go_on(state, ones, ones)
    np.testing.assert_array_equal(np.isnan(hidden).all(axis=(1, 2)), [True, False, True])


def test_the_state_keeps_its_types_and_shapes(model, tokens):
    before = model.empty()
    _, after = model.go_on(before, tokens, np.ones_like(tokens))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)


def test_a_rewound_state_goes_on_as_if_nothing_had_been_read_since(model, tokens):
    """Rows of different lengths; the longest filled its cache since, and the mark outlives what it marks."""
    ones = np.ones_like(tokens)
    _, state = model.go_on(model.empty(), tokens, ones * (np.arange(TIME)[None] < LENGTHS[:, None]))
    mark, expected = state.mark(), model.go_on(state, tokens[:, ::-1], ones * (np.arange(TIME) < 9))
    _, later = model.go_on(state, tokens, ones * (np.arange(TIME) < 16))
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    hidden, after = model.go_on(later.rewound(mark), tokens[:, ::-1], ones * (np.arange(TIME) < 9))
    np.testing.assert_array_equal(hidden[:, :9], expected[0][:, :9])
    chex.assert_trees_all_equal(after.cache_position, expected[1].cache_position)
