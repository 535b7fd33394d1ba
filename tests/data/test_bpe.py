"""Tokenizers from tokens and merges alone: how text is cut, SentencePiece's order, added tokens, missing bytes."""

import heapq
import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from hypenet_jax.data import bpe
from hypenet_jax.data.tokenizer import TrainedTokenizer, load_tokenizer, make_tokenizer

TEXTS = ["def add(a, b):\n    return a + b\n", "ünïcödé 😀 and\ttabs", "it's 12345 o'clock"] * 3
WORDS = make_tokenizer(TrainedTokenizer(300), TEXTS)
ALPHABET = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def pieces(name: str, text: str) -> list[str]:
    split = bpe.byte_level_bpe(ALPHABET, [], name).pre_tokenizer
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "cut"),
    [
        ("gpt-2", "I'll pay 1234\n\n now", ["I", "'ll", " pay", " 1234", "\n\n", " now"]),
        ("smollm", "pay 1234", ["pay", " ", "1", "2", "3", "4"]),
        ("llama-bpe", "pay 1234", ["pay", " ", "123", "4"]),
        ("llama-bpe", "I'LL (go)\n\n", ["I", "'LL", " (", "go", ")\n\n"]),
        ("qwen2", "pay 1234", ["pay", " ", "1", "2", "3", "4"]),
        ("tekken", "HelloWorld a/b", ["Hello", "World", " a", "/b"]),
    ],
)
def test_text_is_cut_as_the_published_tokenizers_cut_it(name, text, cut):
    assert pieces(name, text) == cut


def test_no_other_way_to_cut_is_guessed():
    with pytest.raises(ValueError, match="no pre-tokenizer 'default'; there are gpt-2, smollm"):
        bpe.byte_level_bpe(ALPHABET, [], "default")


def test_every_byte_has_its_own_character():
    vocab = dict(ALPHABET)
    assert bpe.missing_bytes(vocab, byte_level=True) == b""
    for letter, byte in (("A", 0x41), ("Ġ", 0x20), ("Ċ", 0x0A), ("ÿ", 0xFF), ("Ń", 0xAD)):
        assert bpe.missing_bytes(vocab.keys() - {letter}, byte_level=True) == bytes([byte])
    some = [f"<0x{byte:02X}>" for byte in range(256) if byte != 0x0A]
    assert bpe.missing_bytes(some, byte_level=False) == b"\n"


PIECES = ["▁", *"abcdeg", "ab", "▁a", "▁ab", "bc", "abc", "de", "cde", "▁abcde", "ee", "eee"]
SCORES = {piece: -float(i % 7 + len(piece) / 4) for i, piece in enumerate(PIECES)}


def sentencepiece(text: str) -> list[str]:
    """SentencePiece's own way: of all neighbours that make a piece together, those of the best score first."""
    symbols: list[str | None] = list("▁" + text.replace(" ", "▁"))
    after = list(range(1, len(symbols) + 1))

    def candidates():
        at = 0
        while after[at] < len(symbols):
            whole = symbols[at] + symbols[after[at]]
            if whole in SCORES:
                yield -SCORES[whole], at
            at = after[at]

    while found := heapq.nsmallest(1, candidates()):
        at = found[0][1]
        symbols[at] += symbols[after[at]]
        symbols[after[at]], after[at] = None, after[after[at]]
    return [symbol for symbol in symbols if symbol is not None]


def test_merges_of_scores_cut_text_as_sentencepiece_does():
    vocab = {"<unk>": 0, **{piece: i + 1 for i, piece in enumerate(PIECES)}}
    backend = bpe.sentencepiece_bpe(
        vocab, bpe.merges_of_scores(SCORES), unknown="<unk>", prefix=True
    )
    draw = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(draw.choice(list("abcdeg "), 12))
        assert backend.encode(text).tokens == sentencepiece(text)
        assert backend.decode(backend.encode(text).ids) == text


def test_characters_without_a_piece_become_bytes():
    vocab = {"<unk>": 0, "▁": 1, "a": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    backend = bpe.sentencepiece_bpe(vocab, [], unknown="<unk>", prefix=False)
    for text in ("a é a", " 模型\n", "😀"):
        assert backend.decode(backend.encode(text).ids) == text
    assert backend.encode("é").tokens == ["<0xC3>", "<0xA9>"]


@pytest.fixture
def folder(tmp_path):
    """What older folders hold in place of tokenizer.json."""
    WORDS.backend.model.save(str(tmp_path))
    set_config(tmp_path, tokenizer_class="GPT2TokenizerFast", eos_token="<|endoftext|>")
    return tmp_path


def set_config(folder, **fields):
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def test_vocab_and_merges_are_a_tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.end_token == "<|endoftext|>"
    for text in [*TEXTS[:3], "never seen 模型"]:
        np.testing.assert_array_equal(tokenizer.encode(text), WORDS.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_qwen_folder_cuts_digits_one_by_one(folder):
    set_config(folder, tokenizer_class="Qwen2Tokenizer", eos_token="<|endoftext|>")
    digits = load_tokenizer(folder).encode("12345")
    assert len(digits) == 5


def test_added_tokens_keep_their_ids(folder):
    added = {"310": {"content": "<|im_end|>", "special": True}, "320": {"content": "<think>"}}
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 305, "<|im_end|>": 310}')
    set_config(
        folder,
        tokenizer_class="GPT2Tokenizer",
        eos_token="<|im_end|>",
        added_tokens_decoder=added,
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.end_id, tokenizer.id_of("<|im_start|>"), tokenizer.vocab_size) == (
        310,
        305,
        321,
    )
    assert 310 not in tokenizer.encode("a <|im_end|>")
    assert tokenizer.encode("a<think>b").tolist()[1] == 320
    tokenizer.save(folder / "again")
    again = load_tokenizer(folder / "again")
    assert again.fingerprint == tokenizer.fingerprint


def test_added_tokens_that_contradict_the_vocabulary_are_refused(folder):
    (folder / "added_tokens.json").write_text('{"<|im_end|>": 5}')
    with pytest.raises(
        ValueError, match=r"id 5 is '.*' in vocab.json and the added token '<\|im_e"
    ):
        load_tokenizer(folder)


def test_a_class_that_does_not_say_how_text_is_cut_is_refused(folder):
    set_config(folder, tokenizer_class="LlamaTokenizer", eos_token="<|endoftext|>")
    with pytest.raises(
        ValueError, match=r"'LlamaTokenizer' does not say .* let transformers write"
    ):
        load_tokenizer(folder)


def test_damaged_merges_are_named(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nonly-one\n")
    with pytest.raises(ValueError, match=r"vocab.json or merges.txt is damaged"):
        load_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(folder)
