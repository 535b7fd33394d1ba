import dataclasses
import itertools
import logging
import pickle
import shutil

import chex
import jax
import numpy as np
import pytest

from hypenet_jax.data.config import DataConfig
from hypenet_jax.data.loader import RowOrder, heldout_batches, loader
from hypenet_jax.data.synthetic import Catalogue, NeedleRows

BATCH = 4
NEEDLES = NeedleRows(Catalogue(300), row_fraction=0.5, min_needles=1, max_needles=2, queries=1)


@pytest.fixture
def config(corpus):
    return DataConfig(
        corpus=corpus, context_length=16, sequences_per_step=BATCH, first_token=0, seed=5
    )


@pytest.fixture
def load(prepared):
    """Makes loaders and closes them when the test ends."""
    opened = []

    def make(config, host=0, hosts=1, position=0):
        opened.append(loader(config, prepared, host, hosts))
        opened[-1].position = position
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def take(batches, count):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("length", [16, 32])
def test_an_epoch_holds_every_training_token_once(load, config, prepared, length):
    config = dataclasses.replace(config, context_length=length, sequences_per_step=1)
    batches = take(load(config), prepared.num_rows("train", length))
    read = np.concatenate([batch.tokens[batch.segment_ids != 0] for batch in batches])
    stored = prepared.tokens("train")
    np.testing.assert_array_equal(np.sort(read), np.sort(stored))
    rows = {row.tobytes() for batch in batches for row in batch.tokens}
    starts = range(0, len(stored) // length * length, length)
    assert rows >= {stored[start : start + length].tobytes() for start in starts}


def test_the_next_epoch_has_the_same_rows_in_another_order(load, config, prepared):
    config = dataclasses.replace(config, sequences_per_step=1)
    count = prepared.num_rows("train", 16)
    rows = [batch.tokens.tobytes() for batch in take(load(config), 2 * count)]
    assert sorted(rows[:count]) == sorted(rows[count:])
    assert rows[:count] != rows[count:]


@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_hosts(load, config, hosts, position):
    config = dataclasses.replace(config, needles=NEEDLES)
    alone = take(load(config, position=position), 6)
    shares = [take(load(config, h, hosts, position), 6) for h in range(hosts)]
    for number, whole in enumerate(alone):
        parts = [share[number] for share in shares]
        chex.assert_trees_all_equal(
            jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), whole
        )


def test_over_three_epochs_with_changing_hosts_no_row_is_skipped_or_repeated(
    load, config, prepared
):
    rows = prepared.num_rows("train", 16)
    batches = -(-3 * rows // BATCH)
    alone = take(load(config), batches)
    # A run of 2 hosts that goes on with 4, then 1, then 2.
    cuts = [0, rows // 9, rows // 3, 2 * rows // 3, batches]
    read = []
    for hosts, (first, last) in zip((2, 4, 1, 2), itertools.pairwise(cuts), strict=True):
        shares = [take(load(config, host, hosts, first), last - first) for host in range(hosts)]
        read += [
            np.concatenate([batch.tokens for batch in share]) for share in zip(*shares, strict=True)
        ]
    for ours, whole in zip(read, alone, strict=True):
        assert {row.tobytes() for row in ours} == {row.tobytes() for row in whole.tokens}
    stream = [row.tobytes() for batch in read for row in batch]
    epochs = [sorted(stream[rows * epoch : rows * (epoch + 1)]) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    stored = np.sort(prepared.tokens("train"))
    epoch = np.concatenate(read)[:rows]
    np.testing.assert_array_equal(np.sort(epoch[epoch != 0]), stored[stored != 0])


@pytest.mark.parametrize("position", [0, 1, 7, 100])
def test_resuming_at_a_position_equals_going_on(load, config, position):
    config = dataclasses.replace(config, needles=NEEDLES)
    whole = take(load(config), position + 3)[position:]
    chex.assert_trees_all_equal(take(load(config, position=position), 3), whole)


def test_position_counts_batches_given_out_and_can_go_back(load, config):
    batches = load(config)
    first = take(batches, 3)
    assert batches.position == 3
    batches.position = 1
    chex.assert_trees_all_equal(next(batches), first[1])
    assert batches.position == 2
    batches.position = -1
    with pytest.raises(ValueError, match="negative"):
        next(batches)


def test_another_seed_is_another_order(load, config):
    other = dataclasses.replace(config, seed=6)
    assert (next(load(config)).tokens != next(load(other)).tokens).any()


@pytest.mark.parametrize("lengths", [(16, 64), (64, 16), (32, 32)])
def test_stages_one_after_another_read_different_text(lengths):
    """Stage one reads rows of one length, stage two starts at the next window with another."""
    first, second = (RowOrder(64 * 500 + 17, 64, length, seed=1) for length in lengths)
    window = 64 * 64
    rows = 11_000 // lengths[0]
    read = {tokens for row in range(rows) for tokens in span(first, row)}
    start = -(-rows * lengths[0] // window) * window // lengths[1]
    later = [t for row in range(start, second.num_rows) for t in span(second, row)]
    assert len(later) > len(read)
    assert not read & set(later)


def span(order, row):
    """The tokens of a row, in units of 16."""
    block, part = order(row)
    first = block * order.block_length + part * order.context_length
    return range(first // 16, (first + order.context_length) // 16)


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 64 * 64, 64 * 130 + 17])
def test_an_epoch_is_a_permutation_of_its_rows(num_tokens):
    order = RowOrder(num_tokens, 64, 16, seed=2**32 - 1)
    for epoch in range(2):
        rows = [order(epoch * order.num_rows + row) for row in range(order.num_rows)]
        assert sorted(4 * block + part for block, part in rows) == list(range(order.num_rows))


def test_every_epoch_brings_other_blocks_first():
    order = RowOrder(64 * 640, 64, 64, seed=0)
    first, second = ({order(640 * epoch + row)[0] for row in range(64)} for epoch in range(2))
    assert len(first & second) < 32


def test_beginning_later_equals_skipping_the_batches_before(load, config):
    later = dataclasses.replace(config, needles=NEEDLES, first_token=config.corpus.window_tokens)
    skipped = config.corpus.window_tokens // (config.context_length * BATCH)
    whole = load(dataclasses.replace(config, needles=NEEDLES), position=skipped)
    chex.assert_trees_all_equal(take(load(later), 3), take(whole, 3))


def test_rows_of_one_block_are_spread_over_batches():
    order = RowOrder(512 * 640, 512, 64, seed=0)
    blocks = [order(row)[0] for row in range(24)]
    assert len(set(blocks)) >= 18


def test_running_out_of_text_is_said_once(load, config, prepared, caplog):
    full = prepared.num_rows("train", 16) // BATCH
    batches = load(config)
    with caplog.at_level(logging.WARNING):
        take(batches, full)
        assert "has been read" not in caplog.text
        take(batches, 2 * full)
    assert caplog.text.count("has been read") == 1
    assert f"has been read at batch {full}" in caplog.text


def test_without_reset_a_row_is_one_segment(load, config):
    batch = next(load(dataclasses.replace(config, reset_documents=False)))
    assert set(np.unique(batch.segment_ids)) <= {0, 1}
    full = batch.segment_ids[:, -1] == 1
    np.testing.assert_array_equal(batch.positions[full], np.tile(np.arange(16), (full.sum(), 1)))


def test_needles_are_planted_in_part_of_the_rows(load, config):
    batches = take(load(dataclasses.replace(config, needles=NEEDLES)), 20)
    marked = np.concatenate([(b.tokens == NEEDLES.catalogue.marker).any(1) for b in batches])
    assert 0.3 < marked.mean() < 0.7


def test_the_pipeline_can_be_pickled(load, config):
    batches = load(dataclasses.replace(config, needles=NEEDLES))
    again = pickle.loads(pickle.dumps(batches._batches))
    chex.assert_trees_all_equal(again[5], take(batches, 6)[5])


def test_what_cannot_be_loaded_is_refused(load, config, prepared):
    with pytest.raises(ValueError, match="host 0 of 3"):
        load(config, 0, 3)
    with pytest.raises(ValueError, match="host 2 of 2"):
        load(config, 2, 2)
    corpus = dataclasses.replace(config.corpus, block_length=64)
    with pytest.raises(ValueError, match="blocks of 32, the config says 64"):
        load(dataclasses.replace(config, corpus=corpus))
    needles = dataclasses.replace(NEEDLES, catalogue=Catalogue(301))
    with pytest.raises(ValueError, match="ends at id 573, the vocabulary has 573"):
        load(dataclasses.replace(config, needles=needles))
    with pytest.raises(ValueError, match="does not divide"):
        next(heldout_batches(prepared, 12, 2, reset_documents=True))


@pytest.mark.parametrize("sequences", [3, 100])
def test_held_out_batches_hold_the_split_once_in_order(prepared, sequences):
    batches = list(heldout_batches(prepared, 16, sequences, reset_documents=True))
    read = np.concatenate([batch.tokens[batch.segment_ids != 0] for batch in batches])
    np.testing.assert_array_equal(read, prepared.tokens("heldout"))
    assert {batch.tokens.shape for batch in batches} == {(sequences, 16)}
    padding = batches[-1].segment_ids == 0
    assert not batches[-1].loss_weight[padding].any()


def test_a_damaged_block_stops_the_loader(load, config, tmp_path, prepared):
    folder = shutil.copytree(prepared.folder, tmp_path / "copy")
    path = folder / "train.tokens"
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(bytes(raw))
    batches = loader(config, dataclasses.replace(prepared, folder=folder))
    with pytest.raises(OSError, match=r"block 2 of .*train\.tokens is damaged"):
        take(batches, 100)
    batches.close()
