import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypenet_jax.data.packing import PackedRow, cut_row, pack, row_from_bytes, row_to_bytes

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def documents_of(lengths):
    """Documents whose tokens are all different over the whole list."""
    ends = np.cumsum(lengths)
    return [
        np.arange(end - n, end, dtype=np.int32) + 1 for n, end in zip(lengths, ends, strict=True)
    ]


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_rows_hold_every_token_once_in_order_and_only_the_last_is_short(lengths):
    rows = list(pack(documents_of(lengths), 8))
    np.testing.assert_array_equal(
        np.concatenate([row.tokens for row in rows]), np.arange(sum(lengths)) + 1
    )
    assert all(len(row.tokens) == 8 for row in rows[:-1])
    assert all(row.lengths.sum() == len(row.tokens) for row in rows)


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_cutting_long_rows_equals_packing_short_ones(lengths):
    short = list(pack(documents_of(lengths), 4))
    long = list(pack(documents_of(lengths), 12))
    for number, row in enumerate(short):
        cut = cut_row(long[number // 3], number % 3, 4, reset_documents=True)
        packed = cut_row(row, 0, 4, reset_documents=True)
        for name in ("tokens", "positions", "loss_weight"):
            np.testing.assert_array_equal(cut[name], packed[name])


def test_a_long_document_goes_on_as_a_new_segment_with_positions_from_zero():
    first, second = pack(documents_of([11, 3]), 8)
    row = cut_row(second, 0, 8, reset_documents=True)
    np.testing.assert_array_equal(first.lengths, [8])
    np.testing.assert_array_equal(row["tokens"], [9, 10, 11, 12, 13, 14, 0, 0])
    np.testing.assert_array_equal(row["segment_ids"], [1, 1, 1, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 0, 1, 2, 0, 0])
    np.testing.assert_array_equal(row["loss_weight"], [0, 1, 1, 0, 1, 1, 0, 0])


def test_the_published_form_is_one_segment_whose_positions_count_the_row():
    (packed,) = pack(documents_of([3, 2]), 8)
    row = cut_row(packed, 0, 8, reset_documents=False)
    np.testing.assert_array_equal(row["segment_ids"], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(row["positions"], [0, 1, 2, 3, 4, 0, 0, 0])
    np.testing.assert_array_equal(row["loss_weight"], [0, 1, 1, 1, 1, 0, 0, 0])


def test_a_part_beyond_the_tokens_is_all_padding():
    (packed,) = pack(documents_of([3]), 8)
    assert not cut_row(packed, 1, 4, reset_documents=True)["segment_ids"].any()


def test_stored_rows_read_back_and_contradictions_are_refused():
    row = PackedRow(np.arange(5, dtype=np.int32), np.array([2, 3], np.int32))
    record = row_to_bytes(row)
    for read, written in zip(row_from_bytes(record), row, strict=True):
        np.testing.assert_array_equal(read, written)
    for broken in (record[:-4], b"", record[4:]):
        with pytest.raises(ValueError, match="prepare the data again"):
            row_from_bytes(broken)
