"""How long documents are: told by the corpus, chosen by length, and seen in the positions of rows."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from hypenet_jax.data import batch as batches
from hypenet_jax.data.batch import doublings, log_positions, packed_row, shares_past, stack_rows
from hypenet_jax.data.config import DataConfig
from hypenet_jax.data.loader import heldout_batches, loader
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.sources import Conversations
from hypenet_jax.data.tokenizer import TokenizerFile


def documents_of(prepared, split="train"):
    """Lengths of the documents of a split, end tokens included."""
    ends = np.flatnonzero(prepared.tokens(split) == prepared.manifest["end_id"])
    return np.diff(ends, prepend=-1)


@pytest.fixture(scope="module")
def long(corpus, prepared, tmp_path_factory):
    """Those documents of the corpus that have 200 tokens or more."""
    folder = str(tmp_path_factory.mktemp("long") / "prepared")
    return dataclasses.replace(
        corpus, folder=folder, tokenizer=TokenizerFile(corpus.folder), min_document_tokens=200
    )


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_corpus_says_how_many_documents_and_tokens_of_each_length_it_has(prepared, split):
    every, told = documents_of(prepared, split), prepared.manifest["splits"][split]["lengths"]
    powers = 2 ** np.floor(np.log2(every)).astype(int)
    assert told["longest"] == every.max()
    assert told["documents"] == {str(p): np.count_nonzero(powers == p) for p in np.unique(powers)}
    assert told["tokens"] == {str(p): every[powers == p].sum() for p in np.unique(powers)}


def test_shorter_documents_are_left_out_of_training_and_of_what_is_held_out(prepared, long, caplog):
    with caplog.at_level(logging.INFO):
        chosen = prepare(long)
    for split in ("train", "heldout"):
        every = documents_of(prepared, split)
        kept, counts = documents_of(chosen, split), chosen.manifest["splits"][split]
        np.testing.assert_array_equal(kept, every[every >= 200])
        assert sum(counts["left_out"]["documents"].values()) == np.count_nonzero(every < 200)
        assert counts["documents"] == len(kept) > 0
    assert "shorter documents left out" in caplog.text


def test_a_folder_of_other_documents_is_refused(corpus, prepared):
    with pytest.raises(ValueError, match="in min_document_tokens: nothing saved, 9 now; name"):
        prepare(dataclasses.replace(corpus, min_document_tokens=9))


def test_a_corpus_without_a_document_as_long_is_refused_with_what_would_work(
    prepared, long, tmp_path
):
    asked = dataclasses.replace(long, folder=str(tmp_path / "none"), min_document_tokens=4096)
    longest = documents_of(prepared).max()
    with pytest.raises(ValueError, match=f"the longest has {longest}. Use at most that; or 0, and"):
        prepare(asked)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="-1 is negative; 0 takes all"):
        dataclasses.replace(long, min_document_tokens=-1)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_that_join_short_documents_hold_the_same_text_at_later_positions(
    corpus, prepared, split
):
    apart = DataConfig(
        corpus=corpus, context_length=32, sequences_per_step=4, first_token=0, seed=0
    )
    joined = dataclasses.replace(apart, join_below=33)
    (one, *ones), (other, *others) = (batches_of(data, prepared, split) for data in (apart, joined))
    for ours, plain in zip([other, *others], [one, *ones], strict=True):
        np.testing.assert_array_equal(ours.tokens, plain.tokens)
        assert (ours.positions >= plain.positions).all()
        real = ours.segment_ids != 0
        assert (ours.positions == np.arange(32))[real].all()
    assert any((plain.segment_ids > 1).any() for plain in (one, *ones))


def batches_of(data, prepared, split):
    if split == "heldout":
        return heldout_batches(prepared, 32, 4, data.reset_documents, data.join_below)
    loaded = loader(data, prepared)
    read = [loaded.read(number) for number in range(6)]
    assert loaded.position == 0
    for ours, next_one in zip(read, itertools.islice(loaded, 6), strict=True):
        np.testing.assert_array_equal(ours.tokens, next_one.tokens)
    loaded.close()
    return read


def test_joining_is_refused_where_nothing_is_apart_or_must_stay_so(corpus):
    rows = {"context_length": 32, "sequences_per_step": 4, "first_token": 0, "seed": 0}
    with pytest.raises(ValueError, match="every row is joined already: leave one of them out"):
        DataConfig(corpus=corpus, **rows, reset_documents=False, join_below=8)
    chats = dataclasses.replace(
        corpus, source=Conversations("chats", ("*.jsonl",)), tokenizer=TokenizerFile("teacher")
    )
    with pytest.raises(ValueError, match="stay apart; leave join_below out"):
        DataConfig(corpus=chats, **rows, join_below=8)


def test_shares_past_each_doubling_are_those_of_the_tokens_alone():
    """A document of 1,536 tokens, one of 100, and padding."""
    text = np.ones(1636, np.int32)
    text[[1535, 1635]] = 0
    batch = stack_rows([packed_row(text, 0, 4096, reset_documents=True)])
    shares = shares_past([batch, batch], 4096)
    assert shares == {512: 1024 / 1636, 1024: 512 / 1636, 2048: 0.0}
    assert shares_past([], 1024) == {512: 0.0}
    assert (doublings(512), doublings(513), doublings(1 << 14)[-1]) == ([], [512], 1 << 13)


def test_a_stage_says_once_what_its_rows_hold_and_nothing_of_short_ones(monkeypatch, caplog):
    """Every tenth of its batches has rows of one document, the others of two."""
    texts = [np.ones(1024, np.int32) for _ in range(2)]
    texts[1][511] = 0
    rows = [[packed_row(text, 0, 1024, reset_documents=True)] for text in texts]
    monkeypatch.setattr(batches, "MOST_COUNTED", 20 * 1024)
    with caplog.at_level(logging.INFO):
        log_positions("finetune", 1024, lambda n: stack_rows(rows[n % 10 != 3]), range(3, 203))
        log_positions("distill", 512, lambda n: stack_rows(rows[0]), range(8))
        log_positions("done", 1024, lambda n: stack_rows(rows[0]), range(0))
    assert caplog.messages == [
        "finetune: of its tokens, 50 % past 512 (counted in 20 of 200 batches)"
    ]
