import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model import token_layout as source
from hypenet_jax.model.token_layout import start_position

pytestmark = pytest.mark.brief

layout_tokens = jax.jit(source.layout_tokens, static_argnums=(0, 1))


def layout(segment_ids, cache_position=None):
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    return layout_tokens(*segment_ids.shape, None, segment_ids, cache_position)


def by_hand(segment_ids):
    """Documents and positions of one row, token by token."""
    document, position, last = 0, 0, None
    documents, positions = [], []
    for number in segment_ids:
        if number and number != last:
            document, position, last = document + 1, 0, number
        documents.append(document if number else 0)
        positions.append(position)
        position += number != 0
    return documents, positions


def test_without_segment_ids_positions_count_and_there_are_none():
    placed, cache_position = layout_tokens(2, 3, None, None, None)
    np.testing.assert_array_equal(placed.positions, [[0, 1, 2], [0, 1, 2]])
    assert placed.segment_ids is None
    assert cache_position is None


def test_documents_and_positions_are_as_counted_by_hand():
    draws = np.random.default_rng(0)
    rows = np.repeat(draws.integers(0, 4, (64, 12)), draws.integers(1, 4, 12), axis=1)
    placed, _ = layout(rows)
    real = rows != 0
    for row, documents, positions in zip(rows, placed.segment_ids, placed.positions, strict=True):
        want_documents, want_positions = by_hand(row)
        np.testing.assert_array_equal(documents, want_documents)
        np.testing.assert_array_equal(positions[row != 0], np.asarray(want_positions)[row != 0])
    assert real.any()


def test_a_repeated_number_is_a_document_of_its_own():
    placed, _ = layout([[1, 1, 2, 2, 1, 1]])
    np.testing.assert_array_equal(placed.segment_ids, [[1, 1, 2, 2, 3, 3]])
    np.testing.assert_array_equal(placed.positions, [[0, 1, 0, 1, 0, 1]])


def test_padding_inside_a_document_does_not_cut_it():
    placed, _ = layout([[0, 5, 5, 0, 0, 5]])
    np.testing.assert_array_equal(placed.segment_ids, [[0, 1, 1, 0, 0, 1]])
    assert placed.positions[0, 5] == 2


def test_two_calls_place_tokens_as_one_call():
    draws = np.random.default_rng(1)
    rows = np.repeat(draws.integers(0, 3, (32, 8)), 2, axis=1)
    whole, after = layout(rows, start_position(32, 20))
    first, cache_position = layout(rows[:, :9], start_position(32, 20))
    second, cache_position = layout(rows[:, 9:], cache_position)
    real = rows != 0
    for name in ("segment_ids", "cache_slots", "positions"):
        joined = np.concatenate([getattr(first, name), getattr(second, name)], axis=1)
        np.testing.assert_array_equal(joined[real], np.asarray(getattr(whole, name))[real])
    chex.assert_trees_all_equal(cache_position, after)


def test_padding_costs_no_slot():
    placed, cache_position = layout([[0, 0, 1, 1], [1, 0, 1, 0]], start_position(2, 6))
    np.testing.assert_array_equal(placed.cache_slots, [[6, 6, 0, 1], [0, 6, 1, 6]])
    np.testing.assert_array_equal(placed.slot_segment_ids, [[1, 1, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(cache_position.written, [2, 2])
    np.testing.assert_array_equal(cache_position.next_position, [2, 2])


def test_without_segments_a_call_goes_on_with_the_open_document():
    _, cache_position = layout([[7, 7, 0], [0, 0, 0]], start_position(2, 6))
    placed, _ = layout_tokens(2, 2, None, None, cache_position)
    np.testing.assert_array_equal(placed.positions, [[2, 3], [0, 1]])
    np.testing.assert_array_equal(placed.reset_state, [False, True])
    np.testing.assert_array_equal(placed.cache_slots, [[2, 3], [0, 1]])


def test_a_new_number_resets_and_a_row_of_padding_waits():
    _, cache_position = layout([[7, 7], [7, 7], [7, 7]], start_position(3, 6))
    placed, after = layout([[7, 8], [8, 8], [0, 0]], cache_position)
    np.testing.assert_array_equal(placed.reset_state, [False, True, False])
    np.testing.assert_array_equal(placed.positions[:2], [[2, 0], [0, 1]])
    np.testing.assert_array_equal(after.segment_id, [8, 8, 7])
    np.testing.assert_array_equal(after.next_position, [1, 2, 2])
    np.testing.assert_array_equal(after.written, [4, 4, 2])


def test_given_positions_win_and_the_count_goes_on_from_them():
    segment_ids = jnp.ones((1, 2), jnp.int32)
    placed, cache_position = layout_tokens(
        1, 2, jnp.asarray([[40, 41]]), segment_ids, start_position(1, 4)
    )
    np.testing.assert_array_equal(placed.positions, [[40, 41]])
    assert cache_position.next_position == 42
    assert cache_position.written == 2


def test_a_row_overflows_with_its_first_token_past_the_capacity():
    _, cache_position = layout([[1, 1, 1], [1, 1, 0]], start_position(2, 2))
    np.testing.assert_array_equal(cache_position.overflow, [True, False])
