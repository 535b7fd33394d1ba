import dataclasses
import logging
import os
import pickle
import shutil
import socket
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from hypenet_jax.data.prepare import is_held_out, prepare
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.data.sources import TextFiles, documents
from hypenet_jax.data.tokenizer import TokenizerFile, TrainedTokenizer


def split_texts(prepared, split):
    """The documents of a split, in stored order, decoded."""
    text = prepared.tokenizer().decode(prepared.tokens(split))
    return text.split(prepared.tokenizer().end_token)[:-1]


def test_every_document_is_stored_once_in_its_split(corpus, prepared):
    texts = {split: split_texts(prepared, split) for split in ("train", "heldout")}
    for name, text in documents(corpus.source):
        held_out = is_held_out(name, corpus.heldout_fraction, corpus.seed)
        assert texts["heldout"].count(text) == held_out
        assert texts["train"].count(text) == (not held_out)


def test_text_is_stored_as_its_tokens_and_nothing_else(corpus, prepared):
    tokenizer = prepared.tokenizer()
    for split in ("train", "heldout"):
        own = [
            np.append(tokenizer.encode(text), tokenizer.end_id).astype("<i4")
            for name, text in documents(corpus.source)
            if is_held_out(name, corpus.heldout_fraction, corpus.seed) == (split == "heldout")
        ]
        raw = (prepared.folder / f"{split}.tokens").read_bytes()
        assert raw.startswith(np.concatenate(own).tobytes())
        assert prepared.manifest["splits"][split].keys() == {"documents", "tokens", "lengths"}
    assert prepared.manifest["recipe"]["format_version"] == 3


def test_no_held_out_document_is_in_training(prepared):
    training, held_out = (set(split_texts(prepared, split)) for split in ("train", "heldout"))
    assert training
    assert held_out
    assert not training & held_out


def test_held_out_documents_stay_when_others_are_added():
    names = [f"doc{i}" for i in range(2000)]
    chosen = {name for name in names if is_held_out(name, 0.1, 7)}
    assert 140 < len(chosen) < 260
    assert chosen != {name for name in names if is_held_out(name, 0.1, 8)}
    assert not any(is_held_out(name, 0.0, 7) for name in names)


def test_a_matching_folder_is_reused_without_writing(corpus, prepared):
    files = sorted(Path(corpus.folder).iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    assert prepare(corpus).manifest == prepared.manifest
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_length", 64),
        ("heldout_fraction", 0.3),
        ("seed", 4),
        ("tokenizer", TrainedTokenizer(301)),
    ],
)
def test_another_request_is_refused_naming_what_differs(corpus, prepared, key, value):
    with pytest.raises(
        ValueError, match=f"prepared differently in {key}: .* saved, .* now; name another"
    ):
        prepare(dataclasses.replace(corpus, **{key: value}))


@pytest.fixture
def small(corpus, tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"some words {number} " * 9)
    return dataclasses.replace(
        corpus,
        folder=str(tmp_path / "prepared"),
        source=TextFiles(str(tmp_path / "text"), ("*.txt",)),
        tokenizer=TrainedTokenizer(260),
    )


def test_changed_text_is_refused_until_the_folder_is_removed(small):
    first = prepare(small)
    (Path(small.source.folder) / "5.txt").write_text("other words " * 9)
    with pytest.raises(ValueError, match="prepared differently in source_fingerprint"):
        prepare(small)
    shutil.rmtree(small.folder)
    assert prepare(small).manifest["recipe"] != first.manifest["recipe"]


def test_a_failed_preparation_leaves_nothing(small, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(zlib, "crc32", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare(small)
    assert os.listdir(Path(small.folder).parent) == ["text"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(small):
    Path(small.folder).mkdir()
    (Path(small.folder) / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="name a new or an empty folder"):
        prepare(small)
    assert os.listdir(small.folder) == ["thesis.txt"]
    (Path(small.folder) / "thesis.txt").unlink()
    assert prepare(small).num_tokens("train") > 0


def test_documents_that_are_not_utf8_are_counted_and_reported(small, caplog):
    (Path(small.source.folder) / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with caplog.at_level(logging.WARNING):
        prepared = prepare(small)
    assert prepared.manifest["not_utf8"] == {"count": 1, "first": ["bad.txt"]}
    assert "1 documents are not UTF-8" in caplog.text


def test_a_given_tokenizer_travels_with_the_rows(small, tmp_path):
    trained = prepare(small).tokenizer()
    given = dataclasses.replace(
        small, folder=str(tmp_path / "given"), tokenizer=TokenizerFile(small.folder)
    )
    prepared = prepare(given)
    assert prepared.tokenizer().fingerprint == trained.fingerprint
    np.testing.assert_array_equal(prepared.tokens("train"), prepare(small).tokens("train"))


def test_text_that_holds_the_end_token_is_refused(small, tmp_path):
    prepare(small)
    given = TokenizerFile(small.folder, end_token="0")
    with pytest.raises(ValueError, match=r"0\.txt holds the end token '0'; set end_token"):
        prepare(dataclasses.replace(small, folder=str(tmp_path / "given"), tokenizer=given))


def test_blocks_are_read_by_number_and_pickled_without_their_content(small):
    blocks = prepare(small).blocks("train")
    whole = prepare(small).tokens("train")
    np.testing.assert_array_equal(blocks[1], whole[32:64])
    np.testing.assert_array_equal(blocks[len(blocks) - 1], whole[32 * (len(blocks) - 1) :])
    pickled = pickle.dumps(blocks)
    assert len(pickled) < 500
    np.testing.assert_array_equal(pickle.loads(pickled)[1], blocks[1])


def test_empty_splits_and_missing_parts_are_explained(small):
    prepared = prepare(dataclasses.replace(small, heldout_fraction=0.0))
    with pytest.raises(ValueError, match="has no heldout text"):
        prepared.tokens("heldout")
    (prepared.folder / "train.tokens").unlink()
    with pytest.raises(OSError, match=r"train\.tokens is missing"):
        prepared.tokens("train")
    (prepared.folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        open_prepared(prepared.folder)
    (prepared.folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        open_prepared(prepared.folder)


@pytest.mark.parametrize("damage", ["truncate", "flip", "zero"])
def test_a_damaged_file_raises_and_names_it(small, damage):
    prepared = prepare(small)
    path = prepared.folder / "train.tokens"
    raw = bytearray(path.read_bytes())
    if damage == "truncate":
        raw = raw[: len(raw) // 2]
    elif damage == "flip":
        raw[200] ^= 1
    else:
        raw[100:] = bytes(len(raw) - 100)
    path.write_bytes(bytes(raw))
    with pytest.raises(OSError, match=r"train\.tokens"):
        prepared.tokens("train")


def test_what_a_killed_preparation_left_is_removed_and_what_others_write_is_not(corpus, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host, others = socket.gethostname(), f"elsewhere-{ended.pid}"
    left = {who: tmp_path / f".new.partial-{who}" for who in (f"{host}-{ended.pid}", others)}
    for folder in (*left.values(), tmp_path / f".new.partial-{host}-{os.getppid()}"):
        folder.mkdir()
    prepare(dataclasses.replace(corpus, folder=str(tmp_path / "new")))
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"new", left[others].name, f".new.partial-{host}-{os.getppid()}"}
