"""The tokenizer of a GGUF file: texts come back, tokens are the original's, what is missing is said."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from gguf_files import CONTROL, ENDS, NORMAL, UNUSED, tokenizer_metadata, write_model

from hypenet_jax.data.tokenizer import Tokenizer, load_tokenizer
from hypenet_jax.generation.text_generator import end_ids
from hypenet_jax.gguf import Unsaid, convert_gguf
from hypenet_jax.testing import tiny_teacher, tiny_tokenizer
from hypenet_jax.weights import CheckpointError

pytest.importorskip("gguf", reason="reads GGUF files: pip install gguf")

pytestmark = pytest.mark.extended

TEXTS = (
    "The quick brown fox isn't 12345 lazy dogs.",
    "def add(a, b):\n    return a + b  # ok\r\n\n\n\tdone",
    "Ça coûte 3 €, naïve Übergröße 😀",
    "我们在这里学习语言模型。",
    " two  spaces  and a tail ",
)
WORDS = tiny_tokenizer(272, ENDS)
SIZE = 280
NOTHING = Unsaid()


def convert(
    folder: pathlib.Path, changed: dict[str, Any], unsaid: Unsaid = NOTHING
) -> pathlib.Path:
    teacher = tiny_teacher(SIZE, layers=1)
    path = write_model(folder / "m.gguf", teacher, "qwen3", tokenizer=WORDS, changed=changed)
    convert_gguf(path, folder / "hf", unsaid)
    return folder / "hf"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "llama3", "qwen2", "tekken"])
def test_every_text_comes_back(tmp_path, pre):
    tokenizer = load_tokenizer(convert(tmp_path, {"tokenizer.ggml.pre": pre}))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_are_those_of_the_original(tmp_path):
    tokenizer = load_tokenizer(convert(tmp_path, {}))
    for text in TEXTS:
        np.testing.assert_array_equal(tokenizer.encode(text), WORDS.encode(text))
    assert [tokenizer.id_of(end) for end in ENDS] == [WORDS.id_of(end) for end in ENDS]
    assert tokenizer.end_token == ENDS[1]


def test_special_tokens_in_a_text_are_read_as_text(tmp_path):
    folder = convert(tmp_path, {})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.end_id not in tokenizer.encode(f"a{ENDS[1]}b")
    tokenizer.backend.encode_special_tokens = False
    assert tokenizer.end_id in tokenizer.encode(f"a{ENDS[1]}b")


def test_ids_template_and_length_are_in_the_folder(tmp_path):
    ids = {f"tokenizer.ggml.{name}_token_id": WORDS.id_of(ENDS[0]) for name in ("eot", "eom")}
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    folder = convert(tmp_path, {**ids, "tokenizer.chat_template": template})
    assert load_tokenizer(folder).config["chat_template"] == template
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((folder / name).read_text())
        assert fields["eos_token_id"] == [WORDS.id_of(ENDS[1]), WORDS.id_of(ENDS[0])]
        assert (fields["bos_token_id"], fields["pad_token_id"]) == (272, 273)
    assert end_ids(folder) == (273, 272)
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 64


def test_what_the_file_leaves_out_is_asked_for(tmp_path):
    silent = {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.pre": None}
    with pytest.raises(ValueError, match="'default'; name it with --pre-tokenizer, one of gpt-2"):
        convert(tmp_path, silent)
    with pytest.raises(ValueError, match="no token that ends a document; name it with --end-tok"):
        convert(tmp_path, silent, Unsaid(pre_tokenizer="gpt-2"))
    with pytest.raises(ValueError, match=r"'<end>'.* are no tokens of the file"):
        convert(tmp_path, silent, Unsaid(pre_tokenizer="gpt-2", end_tokens=("<end>",)))
    folder = convert(tmp_path, silent, Unsaid(pre_tokenizer="gpt-2", end_tokens=ENDS))
    assert end_ids(folder) == (272, 273)
    assert load_tokenizer(folder).end_token == ENDS[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported, only gpt2, llama"),
        ({"tokenizer.ggml.token_type": None}, "token_type is missing"),
        ({"tokenizer.ggml.token_type": [NORMAL]}, "token_type has 1 entries for 274 tokens"),
        ({"tokenizer.ggml.eos_token_id": 900}, "eos_token_id is 900, which is no token"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["a nonsense"]}, "no BPE"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "bos_token_id",
        ),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        convert(tmp_path, changed)
    assert not (tmp_path / "hf").exists()


def test_tokens_beyond_the_weights_are_refused(tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_teacher(273, layers=1), "qwen3", tokenizer=WORDS)
    with pytest.raises(
        CheckpointError, match=r"274 tokens, and weights of 273: .* the last 1, '<\|im_end"
    ):
        convert_gguf(path, tmp_path / "hf", NOTHING)


def with_tokens(*more: tuple[str, int]) -> dict[str, Any]:
    fields = tokenizer_metadata(WORDS)
    prefix = "tokenizer.ggml."
    return {
        prefix + "tokens": [*fields[prefix + "tokens"], *(text for text, _ in more)],
        prefix + "token_type": [*fields[prefix + "token_type"], *(kind for _, kind in more)],
    }


def test_rows_without_a_token_are_no_tokens(tmp_path):
    padding = [(f"[PAD{i}]", UNUSED) for i in range(274, 280)]
    path = write_model(
        tmp_path / "m.gguf",
        tiny_teacher(SIZE, layers=1),
        "qwen3",
        tokenizer=WORDS,
        changed=with_tokens(*padding),
    )
    converted = convert_gguf(path, tmp_path / "hf", NOTHING)
    assert load_tokenizer(tmp_path / "hf").vocab_size == 274
    assert any("6 of 280 rows" in note for note in converted.notes)


def test_two_tokens_of_one_text_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="tokens 274 and 275 are both '<x>'"):
        convert(tmp_path, with_tokens(("<x>", CONTROL), ("<x>", CONTROL)))


def test_bytes_without_a_token_are_told(tmp_path):
    fields = tokenizer_metadata(WORDS)
    tokens = fields["tokenizer.ggml.tokens"]
    # The characters of bytes 04 and ff.
    renamed = [{"Ą": "<four>", "ÿ": "<last>"}.get(token, token) for token in tokens]
    path = write_model(
        tmp_path / "m.gguf",
        tiny_teacher(SIZE, layers=1),
        "qwen3",
        tokenizer=WORDS,
        changed={"tokenizer.ggml.tokens": renamed},
    )
    notes = convert_gguf(path, tmp_path / "hf", NOTHING).notes
    assert any(
        note.startswith("2 of 256 bytes have no token") and "04 ff" in note for note in notes
    )
    tokenizer: Tokenizer = load_tokenizer(tmp_path / "hf")
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


PIECES = ["▁", *"abcdeg", "ab", "▁a", "▁ab", "bc", "abc"]
SENTENCEPIECE = {
    "model": "llama",
    "pre": None,
    "merges": None,
    "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES],
    "token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
    "unknown_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "padding_token_id": None,
}


def test_a_sentencepiece_tokenizer_is_made_of_its_scores(tmp_path):
    scores = [*[np.float32(0)] * 259, *(np.float32(-i) for i in range(len(PIECES)))]
    changed = {"scores": [float(score) for score in scores], **SENTENCEPIECE}
    folder = convert(tmp_path, {f"tokenizer.ggml.{key}": value for key, value in changed.items()})
    tokenizer = load_tokenizer(folder)
    for text in (*TEXTS, "a bad cabbage <s>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.backend.encode("abc ab", add_special_tokens=False).tokens == [
        "▁ab",
        "c",
        "▁ab",
    ]
    assert tokenizer.backend.encode("a").tokens == ["<s>", "▁a"]  # for those who ask for them
    assert (tokenizer.end_token, tokenizer.config["unk_token"]) == ("</s>", "<unk>")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_reads_the_tokenizer_of_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    template = "{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}"
    changed = {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": template}
    folder = convert(tmp_path, changed)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs(text)["input_ids"] == [ours.id_of(ENDS[0]), *ids]
    assert (theirs.eos_token, theirs.bos_token, theirs.pad_token) == (ENDS[1], ENDS[0], ENDS[1])
    chat = theirs.apply_chat_template([{"role": "user", "content": "fox"}], tokenize=False)
    assert chat == "<|im_start|>fox"
