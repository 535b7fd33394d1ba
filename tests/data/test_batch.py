import jax
import numpy as np
import pytest

from hypenet_jax.data.batch import (
    Batch,
    make_row,
    positions_from_segments,
    segments_from_lengths,
    stack_rows,
)


def test_a_row_of_two_documents_and_padding():
    segment_ids = segments_from_lengths(np.array([3, 2]), 7)
    row = make_row(np.arange(7, dtype=np.int32), segment_ids)
    np.testing.assert_array_equal(row["segment_ids"], [1, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 0, 1, 0, 0])
    np.testing.assert_array_equal(row["loss_weight"], [0, 1, 1, 0, 1, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_positions_count_the_earlier_tokens_of_the_same_document(seed):
    lengths = np.random.default_rng(seed).integers(1, 6, size=(4, 3))
    segment_ids = np.stack([segments_from_lengths(row, 20) for row in lengths])
    counted = [
        [0 if s == 0 else int((row[:t] == s).sum()) for t, s in enumerate(row)]
        for row in segment_ids
    ]
    np.testing.assert_array_equal(positions_from_segments(segment_ids), counted)


def test_documents_longer_than_the_row_are_refused():
    with pytest.raises(ValueError, match="use a row of at least 9"):
        segments_from_lengths(np.array([4, 5]), 8)


def test_a_batch_may_hold_anything_that_tree_functions_put_in_it():
    batch = stack_rows([make_row(np.zeros(4, np.int32), np.ones(4, np.int32))] * 2)
    assert batch.tokens.shape == batch.loss_weight.shape == (2, 4)
    assert jax.tree.map(np.shape, batch) == Batch((2, 4), (2, 4), (2, 4), (2, 4))
