import json

import numpy as np
import pytest

from hypenet_jax.data.bpe import sentencepiece_bpe
from hypenet_jax.data.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    TokenizerFile,
    TrainedTokenizer,
    load_tokenizer,
    make_tokenizer,
)

TEXTS = ["def add(a, b):\n    return a + b\n", "ünïcödé 😀 and\ttabs"] * 3
RESERVED = ("<|one|>", "<|two|>")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(TrainedTokenizer(280, RESERVED), TEXTS)


@pytest.mark.parametrize(
    "text", [*TEXTS[:2], "", " never\x00 seen \r\n ", f"a {END_OF_TEXT} b <|one|>"]
)
def test_decoding_gives_back_every_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_text_is_the_text_of_its_first_tokens_and_what_the_others_add(tokenizer, prefix):
    pieces = ["<unk>", "</s>", "▁", *"abc"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = sentencepiece_bpe(vocab, [], unknown="<unk>", prefix=prefix)
    for each, text in ((Tokenizer(backend, "</s>", {}), "ab  c ba"), (tokenizer, TEXTS[0])):
        tokens = each.encode(text)
        for cut in range(1, len(tokens) + 1):
            assert each.decode(tokens[:cut]) + each.continuation(tokens[cut:]) == text


def test_text_cannot_forge_a_special_token(tokenizer):
    tokens = tokenizer.encode(f"{END_OF_TEXT}<|one|>")
    assert tokenizer.end_id not in tokens
    assert tokenizer.id_of("<|one|>") not in tokens


def test_reserved_tokens_follow_the_text_vocabulary(tokenizer):
    assert [tokenizer.id_of(name) for name in RESERVED] == [280, 281]
    assert tokenizer.vocab_size == 282


def test_encoding_many_equals_encoding_each(tokenizer):
    for together, text in zip(tokenizer.encode_all(TEXTS), TEXTS, strict=True):
        np.testing.assert_array_equal(together, tokenizer.encode(text))


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = make_tokenizer(TrainedTokenizer(280, RESERVED), TEXTS)
    assert again.fingerprint == tokenizer.fingerprint


def test_a_saved_folder_loads_equal_and_names_its_end_token(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "hf")
    loaded = load_tokenizer(tmp_path / "hf")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.config == tokenizer.config
    assert make_tokenizer(TokenizerFile(str(tmp_path / "hf")), []).end_id == tokenizer.end_id


def test_an_end_token_written_as_an_object_is_understood(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = {"eos_token": {"content": "<|two|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).end_token == "<|two|>"


def test_errors_say_what_would_work(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*name a tokenizer\.json"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(ValueError, match="use at least 257"):
        make_tokenizer(TrainedTokenizer(200), TEXTS)
    with pytest.raises(ValueError, match="yields only"):
        make_tokenizer(TrainedTokenizer(5000), TEXTS)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="set end_token"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no token '<eos>'"):
        load_tokenizer(tmp_path, "<eos>")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable"):
        load_tokenizer(tmp_path, END_OF_TEXT)
