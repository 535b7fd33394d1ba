"""Conversations from files to rows: whole, apart from each other, and learned where the assistant speaks."""

import dataclasses
import gzip
import itertools
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from chat_templates import QWEN3
from hypothesis import given, settings
from hypothesis import strategies as st

from hypenet_jax.data.chat import chat_template
from hypenet_jax.data.config import CorpusConfig, DataConfig
from hypenet_jax.data.conversations import (
    CONTEXT,
    FIRST,
    PADDING,
    conversation_row,
    learned,
    token_ids,
)
from hypenet_jax.data.loader import heldout_batches, loader
from hypenet_jax.data.packing import OPEN_BLOCKS, BestFit
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared
from hypenet_jax.data.sources import Conversation, Conversations, conversations
from hypenet_jax.data.tokenizer import TokenizerFile
from hypenet_jax.testing import tiny_chat_tokenizer

LENGTH = 128


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(number: int) -> list[dict[str, str]]:
    """One to three turns of other lengths for every number."""
    turns = [
        [said("user", f"q{number}{turn}" * (1 + number % 3)), said("assistant", f"a{number}{turn}")]
        for turn in range(1 + number % 3)
    ]
    return [said("system", "be brief")] * (number % 2) + list(itertools.chain(*turns))


def write(path: Path, *chats: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, "messages": chat}) + "\n" for chat in chats))


def corpus_of(root: Path, **changes) -> CorpusConfig:
    if not (root / "tokenizer").exists():
        tiny_chat_tokenizer().save(root / "tokenizer")
    corpus = CorpusConfig(
        folder=str(root / "prepared"),
        source=Conversations(str(root / "chats"), ("*.jsonl*", "*.parquet")),
        tokenizer=TokenizerFile(str(root / "tokenizer")),
        block_length=LENGTH,
        heldout_fraction=0.25,
        seed=3,
    )
    return dataclasses.replace(corpus, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> CorpusConfig:
    root = tmp_path_factory.mktemp("conversations")
    write(root / "chats" / "a.jsonl", *map(conversation, range(60)))
    return corpus_of(root)


@pytest.fixture(scope="module")
def prepared(corpus) -> Prepared:
    return prepare(corpus)


def encoded(tokenizer, numbers):
    """Tokens of each conversation, and which are the assistant's, from the template itself."""
    template = chat_template(tokenizer)
    chats = [template.encode(tokenizer, conversation(number)) for number in numbers]
    return sorted((chat.tokens.tolist(), chat.from_assistant.tolist()) for chat in chats)


def segments(batch):
    """Tokens, weights and positions of each segment of a batch of one row."""
    for number in range(1, batch.segment_ids.max() + 1):
        own = batch.segment_ids == number
        yield batch.tokens[own].tolist(), batch.loss_weight[own].tolist(), batch.positions[own]


def test_an_epoch_holds_every_conversation_once_and_whole_and_learns_what_the_assistant_says(
    corpus, prepared
):
    config = DataConfig(
        corpus=corpus, context_length=LENGTH, sequences_per_step=1, first_token=0, seed=0
    )
    batches = loader(config, prepared)
    training = list(itertools.islice(batches, prepared.num_rows("train", LENGTH)))
    batches.close()
    held_out = list(heldout_batches(prepared, LENGTH, 1, reset_documents=True))
    found = [segment for batch in training + held_out for segment in segments(batch)]
    assert sorted((tokens, list(map(bool, weights))) for tokens, weights, _ in found) == encoded(
        prepared.tokenizer(), range(60)
    )
    for tokens, _, positions in found:
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))


def test_the_end_token_inside_a_conversation_ends_a_turn_alone(prepared):
    tokenizer = prepared.tokenizer()
    row = prepared.blocks("train").row(0, 0, LENGTH, reset_documents=True)
    ends = np.count_nonzero(row.tokens == tokenizer.end_id)
    assert ends > row.segment_ids.max() > 1


def test_the_manifest_counts_what_is_learned_and_what_is_padding(prepared):
    for split in ("train", "heldout"):
        blocks = prepared.blocks(split)
        words = np.concatenate([blocks[i] for i in range(len(blocks))])
        counted = {
            "documents": np.count_nonzero(words[words >= 0] & FIRST),
            "tokens": len(words),
            "learned": np.count_nonzero(learned(words)),
            "padding": np.count_nonzero(words == PADDING),
        }
        lengths = prepared.manifest["splits"][split]["lengths"]
        assert prepared.manifest["splits"][split] == {**counted, "lengths": lengths}
        assert sum(lengths["tokens"].values()) == counted["tokens"] - counted["padding"]
        assert len(words) % LENGTH == 0
        tokens = prepared.tokens(split)
        assert len(tokens) == len(words) - counted["padding"]
        assert tokens.max() < prepared.vocab_size


def test_without_reset_a_row_is_one_segment_that_learns_the_same(prepared):
    apart, together = (
        prepared.blocks("train").row(0, 0, LENGTH, reset_documents=reset) for reset in (True, False)
    )
    np.testing.assert_array_equal(together.segment_ids, apart.segment_ids > 0)
    np.testing.assert_array_equal(together.loss_weight, apart.loss_weight)
    assert together.positions.max() > apart.positions.max()


def test_a_row_of_two_conversations_and_padding():
    words = np.array([5 | FIRST | CONTEXT, 6 | CONTEXT, 7, 8 | FIRST, 9, PADDING], np.int32)
    row = conversation_row(words, reset_documents=True)
    np.testing.assert_array_equal(row.tokens, [5, 6, 7, 8, 9, 0])
    np.testing.assert_array_equal(row.segment_ids, [1, 1, 1, 2, 2, 0])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 0, 1, 0])
    np.testing.assert_array_equal(row.loss_weight, [0, 0, 1, 0, 1, 0])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=300))
@settings(max_examples=25, deadline=None)
def test_packing_puts_every_conversation_whole_into_one_block(lengths):
    packing, blocks = BestFit(20), []
    chats = [np.full(length, number, np.int32) for number, length in enumerate(lengths, 1)]
    for chat in chats:
        blocks += packing.add(chat)
    blocks += packing.rest()
    assert {len(block) for block in blocks} == {20}
    found = []
    for block in blocks:
        real = block[block != PADDING]
        np.testing.assert_array_equal(block[: len(real)], real)
        found += [(number, len(list(same))) for number, same in itertools.groupby(real.tolist())]
    assert sorted(found) == list(enumerate(lengths, 1))
    assert packing.counts["padding"] == 20 * len(blocks) - sum(lengths)
    # No two of the blocks that were open together would fit in one.
    assert sum(2 * np.count_nonzero(block != PADDING) <= 20 for block in blocks[-OPEN_BLOCKS:]) <= 1


@pytest.fixture
def short(tmp_path) -> CorpusConfig:
    """Three conversations, in blocks that the second does not fit and in which nobody answers the third."""
    long = [said("user", "hi"), said("assistant", "ho" * 100)]
    late = [said("user", "hi" * 100), said("assistant", "ho")]
    write(tmp_path / "chats" / "a.jsonl", conversation(0), long, late)
    return corpus_of(tmp_path, heldout_fraction=0.0)


def test_a_conversation_longer_than_a_block_is_cut_there_and_left_out_without_an_answer(
    short, caplog
):
    with caplog.at_level(logging.WARNING):
        prepared = prepare(short)
    assert prepared.manifest["cut"] == {"count": 1, "first": ["a.jsonl:2"]}
    assert prepared.manifest["unanswered"] == {"count": 1, "first": ["a.jsonl:3"]}
    assert "1 documents are longer than block_length and were cut there" in caplog.text
    assert "before block_length and were left out, first ['a.jsonl:3']" in caplog.text
    text = prepared.tokenizer().decode(prepared.tokens("train"))
    assert text.count("<|im_start|>user") == 2
    assert len(prepared.blocks("train")) == 2


USER = '{"role": "user", "content": "a"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", "is not JSON"),
        ('{"text": "a"}', r"has no list field 'messages'; it has \['text'\]"),
        (f'{{"messages": [{USER}]}}', "no message in it is the assistant's"),
        ('{"messages": []}', "a conversation without a message"),
        (f'{{"messages": [{USER}, {{"role": "bot", "content": "b"}}]}}', "message 2 has the role"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": " "}}]}}', "message 2.*empty"),
        (
            f'{{"messages": [{USER}, {{"role": "assistant", "content": null}}]}}',
            "message 2.*no text",
        ),
        (f'{{"messages": [{USER}, {{"content": "a"}}]}}', "message 2 has the role None"),
        (f'{{"messages": [{USER}, {{"role": "user", "content": [1]}}]}}', "message 2.*no text"),
    ],
)
def test_what_is_no_conversation_is_one_error_with_file_and_line_and_leaves_nothing(
    short, line, problem
):
    path = Path(short.source.folder) / "a.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"^a.jsonl:4:? .*{problem}"):
        prepare(short)
    assert sorted(os.listdir(Path(short.folder).parent)) == ["chats", "tokenizer"]


def test_lines_that_are_not_utf8_are_counted(short):
    path = Path(short.source.folder) / "a.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff\n")
    assert prepare(short).manifest["not_utf8"] == {"count": 1, "first": ["a.jsonl:4"]}


def test_compressed_lines_and_parquet_are_read_as_lines_are(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    chats = [conversation(number) for number in range(3)]
    write(tmp_path / "a.jsonl", *chats)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    parquet.write_table(pyarrow.table({"messages": chats}), tmp_path / "a.parquet")
    source = Conversations(str(tmp_path), ("*",))
    assert list(conversations(source)) == [
        *(Conversation(f"a.jsonl:{i}", chat) for i, chat in enumerate(chats, 1)),
        *(Conversation(f"a.jsonl.gz:{i}", chat) for i, chat in enumerate(chats, 1)),
        *(Conversation(f"a.parquet:{i}", chat) for i, chat in enumerate(chats)),
    ]


def test_a_matching_folder_is_reused_and_another_chat_template_refused(short):
    first = prepare(short)
    before = (first.folder / "train.tokens").stat().st_mtime_ns
    assert prepare(short).manifest == first.manifest
    assert (first.folder / "train.tokens").stat().st_mtime_ns == before
    tiny_chat_tokenizer(QWEN3).save(short.tokenizer.path)
    with pytest.raises(ValueError, match=r"differently in chat_template: .* saved"):
        prepare(short)


def test_of_a_template_that_rewrites_earlier_turns_the_last_answer_is_learned(tmp_path):
    write(tmp_path / "chats" / "a.jsonl", conversation(2))
    tiny_chat_tokenizer(QWEN3).save(tmp_path / "tokenizer")
    corpus = corpus_of(tmp_path, block_length=512, heldout_fraction=0.0)
    with pytest.raises(ValueError, match=r"a.jsonl:1: the chat template .* last answer"):
        prepare(corpus)
    source = dataclasses.replace(corpus.source, last_answer_alone=True)
    prepared = prepare(dataclasses.replace(corpus, source=source))
    block = prepared.blocks("train")[0]
    text = prepared.tokenizer().decode(token_ids(block[learned(block)]))
    assert text == "<think>\n\n</think>\n\na22<|im_end|>"


def test_a_tokenizer_without_a_chat_template_is_refused(short):
    tokenizer = tiny_chat_tokenizer()
    plain = {name: x for name, x in tokenizer.config.items() if name != "chat_template"}
    dataclasses.replace(tokenizer, config=plain).save(short.tokenizer.path)
    with pytest.raises(ValueError, match=r"no chat template: neither chat_template\.jinja"):
        prepare(short)


def test_rows_that_would_cut_conversations_are_refused(prepared):
    with pytest.raises(ValueError, match=r"rows of 64 tokens would cut .* blocks of 128"):
        next(heldout_batches(prepared, 64, 2, reset_documents=True))
