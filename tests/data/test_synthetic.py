import jax
import numpy as np
import pytest

from hypenet_jax.data.batch import make_row
from hypenet_jax.data.synthetic import Catalogue, NeedleRows, needle_sequence

CATALOGUE = Catalogue(1000)
NEEDLES = NeedleRows(CATALOGUE, row_fraction=1.0, min_needles=4, max_needles=8, queries=8)
TEXT = np.arange(5000, dtype=np.int32) % 900
CASES = [(length, seed) for length in (64, 128, 512) for seed in range(8)]


def planted_row(length, seed, needles=NEEDLES):
    row = make_row(TEXT[:length].copy(), np.repeat(np.arange(1, 5, dtype=np.int32), length // 4))
    return needles(row, np.random.default_rng(seed))


def class_of(entry):
    return (entry - CATALOGUE.entry_id(0, 0)) // CATALOGUE.entries


def kinds(tokens):
    """0 text, 1 marker, 2 class, 3 entry."""
    edges = (CATALOGUE.marker, CATALOGUE.class_id(0), CATALOGUE.entry_id(0, 0))
    return np.searchsorted(edges, tokens, side="right")


def test_catalogue_ids_are_consecutive_and_all_different():
    classes = np.arange(16)
    entries = CATALOGUE.entry_id(classes[:, None], np.arange(16)[None, :])
    ids = [CATALOGUE.marker, *CATALOGUE.class_id(classes), *entries.ravel()]
    assert ids == list(range(1000, 1000 + CATALOGUE.num_ids))
    assert len(set(CATALOGUE.token_names())) == CATALOGUE.num_ids == 273
    assert CATALOGUE.token_names()[CATALOGUE.entry_id(3, 5) - 1000] == "<|entry_3_5|>"


@pytest.mark.parametrize(("length", "seed"), CASES)
def test_every_answer_is_the_one_entry_of_its_class_seen_before(length, seed):
    row = planted_row(length, seed)
    answers = np.flatnonzero(row.loss_weight == NEEDLES.answer_weight)
    assert len(answers) == NEEDLES.queries
    for at in answers:
        before = row.tokens[: at - 2]
        entries = before[kinds(before) == 3]
        asked = row.tokens[at - 1] - CATALOGUE.class_id(0)
        assert row.tokens[at - 2] == CATALOGUE.marker
        assert set(entries[class_of(entries) == asked]) == {row.tokens[at]}


@pytest.mark.parametrize(("length", "seed"), CASES)
def test_only_what_can_be_known_has_weight(length, seed):
    row = planted_row(length, seed)
    kind, weight = kinds(row.tokens), row.loss_weight
    answer = weight == NEEDLES.answer_weight
    assert not weight[kind == 1].any()
    assert not weight[kind == 2].any()
    assert (kind[answer] == 3).all()
    assert not weight[(kind == 3) & ~answer].any()
    assert (weight[1:][kind[1:] == 0] == 1).all()
    assert 4 <= ((kind == 3) & ~answer).sum() <= 8


@pytest.mark.parametrize(("length", "seed"), CASES)
def test_a_needle_row_is_one_document_over_the_text_that_was_there(length, seed):
    row = planted_row(length, seed)
    np.testing.assert_array_equal(row.segment_ids, np.ones(length))
    np.testing.assert_array_equal(row.positions, np.arange(length))
    text = kinds(row.tokens) == 0
    np.testing.assert_array_equal(row.tokens[text], TEXT[:length][text])
    assert {array.dtype.name for array in jax.tree.leaves(row)} == {"int32", "float32"}


def test_queries_are_drawn_with_replacement_and_vary():
    rows = [planted_row(128, seed).tokens for seed in range(20)]
    asked = [tokens[kinds(tokens) == 2] for tokens in rows]
    assert any(len(set(classes)) < len(classes) for classes in asked)
    assert len({tuple(classes) for classes in asked}) == 20


def test_the_same_rng_plants_the_same_and_rows_left_alone_are_untouched():
    np.testing.assert_array_equal(planted_row(64, 3).tokens, planted_row(64, 3).tokens)
    half = NeedleRows(CATALOGUE, row_fraction=0.5, min_needles=1, max_needles=1, queries=1)
    carries = [(planted_row(64, seed, half).segment_ids == 1).all() for seed in range(200)]
    assert 0.35 < np.mean(carries) < 0.65


def test_padded_rows_carry_no_needles():
    row = make_row(np.zeros(64, np.int32), (np.arange(64) < 60).astype(np.int32))
    assert NEEDLES(row, np.random.default_rng(0)) is row


def test_more_needles_than_classes_are_refused():
    with pytest.raises(ValueError, match="classes 16"):
        NeedleRows(CATALOGUE, 1.0, 1, 17, 8)


@pytest.mark.parametrize("length", [128, 1024, 4096])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_question_at_the_end_has_one_answer_at_its_depth(length, depth):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tokens, answer = needle_sequence(CATALOGUE, TEXT, length, 4, depth, rng)
        kind = kinds(tokens)
        entries = tokens[kind == 3]
        assert len(tokens) == length
        assert len(entries) == (kind == 1).sum() - 1 == 4
        assert kind[-2:].tolist() == [1, 2]
        asked = tokens[-1] - CATALOGUE.class_id(0)
        assert entries[class_of(entries) == asked].tolist() == [answer]
        assert abs(int(np.flatnonzero(tokens == answer)[0]) / length - depth) < 4 / length


@pytest.mark.parametrize("asked", range(4))
def test_needles_never_overlap_even_when_they_fill_the_sequence(asked):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tokens, _ = needle_sequence(CATALOGUE, TEXT, 10, 4, asked / 3, rng)
        assert kinds(tokens).tolist() == [1, 3] * 4 + [1, 2]


def test_answers_are_spread_over_the_entries():
    rng = np.random.default_rng(0)
    answers = [needle_sequence(CATALOGUE, TEXT, 128, 4, 0.5, rng)[1] for _ in range(300)]
    assert len(set(answers)) > 150


@pytest.mark.parametrize(
    ("length", "needles", "depth", "message"),
    [
        (6000, 4, 0.5, "give more text"),
        (128, 17, 0.5, "use 1 to 16"),
        (8, 4, 0.5, "use 1 to 3"),
        (128, 4, 1.5, "depth 1.5"),
    ],
)
def test_questions_that_cannot_be_made_are_refused(length, needles, depth, message):
    with pytest.raises(ValueError, match=message):
        needle_sequence(CATALOGUE, TEXT, length, needles, depth, np.random.default_rng(0))
