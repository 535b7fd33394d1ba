import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypenet_jax.data.batch import (
    Batch,
    make_row,
    packed_row,
    positions_from_segments,
    stack_rows,
)


def test_a_row_of_two_documents_and_padding():
    segment_ids = np.array([1, 1, 1, 2, 2, 0, 0], np.int32)
    row = make_row(np.arange(7, dtype=np.int32), segment_ids)
    np.testing.assert_array_equal(row.segment_ids, [1, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 0, 1, 0, 0])
    np.testing.assert_array_equal(row.loss_weight, [0, 1, 1, 0, 1, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_positions_count_the_earlier_tokens_of_the_same_document(seed):
    lengths = np.random.default_rng(seed).integers(1, 6, size=(4, 3))
    rows = [np.repeat([1, 2, 3, 0], [*row, 20 - row.sum()]) for row in lengths]
    segment_ids = np.stack(rows).astype(np.int32)
    counted = [
        [0 if s == 0 else int((row[:t] == s).sum()) for t, s in enumerate(row)]
        for row in segment_ids
    ]
    np.testing.assert_array_equal(positions_from_segments(segment_ids), counted)


END = 1000


def text_of(lengths):
    """Documents of these lengths, END the last token of each; the others all differ."""
    text = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    text[np.cumsum(lengths) - 1] = END
    return text


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_a_row_holds_its_text_and_documents_see_only_themselves(lengths, start):
    text = text_of(lengths)[start:][:8]
    row = packed_row(text, END, 8, reset_documents=True)
    np.testing.assert_array_equal(row.tokens[row.segment_ids != 0], text)
    ends = np.flatnonzero(text == END)
    documents = [part for part in np.split(np.arange(len(text)), ends + 1) if len(part)]
    for document in documents:
        np.testing.assert_array_equal(row.positions[document], np.arange(len(document)))
    assert len(np.unique(row.segment_ids[: len(text)])) == len(documents)


def test_a_document_that_is_cut_goes_on_as_a_new_segment_with_positions_from_zero():
    row = packed_row(text_of([11, 3])[8:], END, 8, reset_documents=True)
    np.testing.assert_array_equal(row.tokens, [9, 10, END, 12, 13, END, 0, 0])
    np.testing.assert_array_equal(row.segment_ids, [1, 1, 1, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(row.loss_weight, [0, 1, 1, 0, 1, 1, 0, 0])


def test_the_published_form_is_one_segment_whose_positions_count_the_row():
    row = packed_row(text_of([3, 2]), END, 8, reset_documents=False)
    np.testing.assert_array_equal(row.segment_ids, [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 3, 4, 0, 0, 0])
    np.testing.assert_array_equal(row.loss_weight, [0, 1, 1, 1, 1, 0, 0, 0])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 9), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_neighbours_share_a_segment_where_both_are_shorter_than_join_below(lengths, start, below):
    text = text_of(lengths)[start:][:30]
    row = packed_row(text, END, 30, reset_documents=True, join_below=below)
    parts = np.split(np.arange(len(text)), np.flatnonzero(text == END) + 1)
    parts = [part for part in parts if len(part)]
    for one, other in itertools.pairwise(parts):
        joined = row.segment_ids[one[0]] == row.segment_ids[other[0]]
        assert joined == (max(len(one), len(other)) < below)
    np.testing.assert_array_equal(row.tokens[: len(text)], text)


def test_joining_below_nothing_or_below_more_than_a_row_are_the_two_forms_without_it():
    text = text_of([3, 2, 4])[1:]
    for reset, below in ((True, 0), (False, 9)):
        joined = packed_row(text, END, 8, reset_documents=True, join_below=below)
        for ours, plain in zip(joined, packed_row(text, END, 8, reset), strict=True):
            np.testing.assert_array_equal(ours, plain)


def test_a_row_without_text_is_all_padding():
    row = packed_row(text_of([3])[3:], END, 4, reset_documents=True)
    assert not row.segment_ids.any()


def test_a_batch_may_hold_anything_that_tree_functions_put_in_it():
    batch = stack_rows([make_row(np.zeros(4, np.int32), np.ones(4, np.int32))] * 2)
    assert batch.tokens.shape == batch.loss_weight.shape == (2, 4)
    assert jax.tree.map(np.shape, batch) == Batch((2, 4), (2, 4), (2, 4), (2, 4))
