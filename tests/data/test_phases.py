"""A curriculum: short rows before long ones, as many tokens in every step, no text twice, resumable anywhere."""

import contextlib
import dataclasses
import itertools
import logging

import chex
import numpy as np
import pytest

from hypenet_jax.data.config import DataConfig, tokens_after
from hypenet_jax.data.loader import RowOrder, loader
from hypenet_jax.data.sources import Conversations
from hypenet_jax.data.synthetic import Catalogue, NeedleRows
from hypenet_jax.data.tokenizer import TokenizerFile

NEEDLES = NeedleRows(Catalogue(300), row_fraction=0.5, min_needles=1, max_needles=1, queries=1)


@pytest.fixture
def config(corpus):
    """Two steps of 8 rows of 16 tokens, then steps of 4 rows of 32; a shuffle window has 2,048."""
    return DataConfig(
        corpus=corpus,
        context_length=32,
        sequences_per_step=4,
        first_token=2048,
        seed=5,
        needles=NEEDLES,
        curriculum=((200, 16),),
    )


@pytest.fixture
def long(config):
    """A step of 64 rows of 8 tokens, three of 16 rows of 32, then steps of 4 rows of 128."""
    corpus = dataclasses.replace(config.corpus, block_length=128)
    lengths = ((512, 8), (1536, 32))
    return dataclasses.replace(
        config, corpus=corpus, context_length=128, first_token=0, needles=None, curriculum=lengths
    )


def take(config, prepared, position, count, host=0, hosts=1):
    with contextlib.closing(loader(config, prepared, host, hosts)) as batches:
        batches.position = position
        return list(itertools.islice(batches, count))


def test_a_step_has_as_many_tokens_at_every_length_and_each_goes_on_where_the_last_ended(long):
    window = long.corpus.window_tokens
    found = [
        (p.first_batch, p.data.sequences_per_step, p.data.context_length, p.data.first_token)
        for p in long.phases
    ]
    assert found == [(0, 64, 8, 0), (1, 16, 32, window), (4, 4, 128, 2 * window)]
    steps = (0, 1, 2, 4, 5, 4 + window // 512)
    assert [tokens_after(long, n) // window for n in steps] == [0, 1, 2, 2, 3, 3]


def test_no_curriculum_is_one_phase_of_the_stage_itself(config):
    plain = dataclasses.replace(config, curriculum=())
    (phase,) = plain.phases
    assert (phase.first_batch, phase.data) == (0, plain)


def test_no_text_is_read_twice(long):
    window, read, total = long.corpus.window_tokens, set(), 0
    ends = [*(phase.first_batch for phase in long.phases[1:]), 30]
    for phase, end in zip(long.phases, ends, strict=True):
        length = phase.data.context_length
        order = RowOrder(window * 9 + 17, 128, length, long.seed)
        first = phase.data.first_token // length
        rows = (end - phase.first_batch) * phase.data.sequences_per_step
        for block, part in map(order, range(first, first + rows)):
            start = block * 128 + part * length
            read |= set(range(start, start + length, 8))
            total += length // 8
    assert len(read) == total == 30 * long.tokens_per_step // 8


@pytest.mark.parametrize("position", [0, 1, 3])
def test_batches_are_those_of_each_length_alone_on_any_number_of_hosts(config, prepared, position):
    phases = [take(phase.data, prepared, 0, 4) for phase in config.phases]
    alone = [*phases[0][:2], *phases[1]][position : position + 3]
    for host in range(2):
        share = take(config, prepared, position, 3, host, 2)
        for ours, whole in zip(share, alone, strict=True):
            rows = len(whole.tokens) // 2
            part = {
                name: leaf[host * rows : (host + 1) * rows] for name, leaf in vars(whole).items()
            }
            chex.assert_trees_all_equal(vars(ours), part)
    assert [batch.tokens.size for batch in alone] == [128] * 3


def test_the_end_of_the_text_is_said_in_the_phase_that_reaches_it(config, prepared, caplog):
    first = tokens_after(config, 2)
    left = prepared.num_rows("train", 32) - first // 32 % prepared.num_rows("train", 32)
    with caplog.at_level(logging.WARNING):
        take(config, prepared, 2 + left // 4 - 1, 1)
        assert "has been read" not in caplog.text
        take(config, prepared, 2 + left // 4, 1)
    assert f"has been read at batch {2 + left // 4}:" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curriculum": ((128, 32),)}, r"\[32\] must grow, stay below context_length 32"),
        ({"curriculum": ((128, 16), (128, 8))}, r"\[16, 8\] must grow"),
        ({"curriculum": ((128, 12),)}, "and divide it; use powers of two"),
        ({"curriculum": ((0, 16),)}, "tokens must be above 0"),
        ({"curriculum": ((128, 8),)}, "need rows of 9 tokens, not 8"),
    ],
)
def test_a_curriculum_that_cannot_be_read_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_rows_of_a_phase_that_hosts_cannot_share_and_conversations_are_refused(config, prepared):
    with pytest.raises(ValueError, match="4 sequences per step do not divide over host 0 of 8"):
        loader(config, prepared, 0, 8)
    chats = dataclasses.replace(
        config.corpus, source=Conversations("c", ("*",)), tokenizer=TokenizerFile("teacher")
    )
    with pytest.raises(ValueError, match="conversations lie in blocks of one length"):
        dataclasses.replace(config, corpus=chats, needles=None)


def test_rows_hold_the_positions_of_their_own_length(config, prepared):
    joined = dataclasses.replace(config, join_below=33, needles=None)
    batches = take(joined, prepared, 1, 2)
    for batch, length in zip(batches, (16, 32), strict=True):
        assert batch.tokens.shape[1] == length
        real = batch.segment_ids != 0
        np.testing.assert_array_equal((batch.positions == np.arange(length))[real], True)
