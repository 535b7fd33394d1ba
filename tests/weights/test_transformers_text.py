"""An exported folder with all that stands beside its weights: transformers writes the text that we write."""

import json

import pytest

from hypenet_jax import hypenet, save_hf
from hypenet_jax.data.bpe import sentencepiece_bpe
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.generation import GenerationConfig, open_generator
from hypenet_jax.testing import (
    VOCABULARY,
    random_params,
    tiny_teacher,
    tiny_tokenizer,
    write_folder,
)
from hypenet_jax.weights.model_card import ModelCard

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PROMPTS = ("a bad cab", "face", "dead beef egg")
NEW = 24


def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = sentencepiece_bpe(vocab, [], unknown="<unk>", prefix=True)
    backend.add_special_tokens(["<unk>", "</s>"])
    names = {"eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}
    return Tokenizer(backend, "</s>", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


@pytest.fixture(scope="module", params=[tiny_tokenizer, sentencepiece])
def folder(request, tmp_path_factory):
    """A student of a teacher that has a tokenizer, a chat template and settings of its own."""
    place, config = tmp_path_factory.mktemp("text"), tiny_teacher(VOCABULARY)
    teacher = write_folder(place / "teacher", config, tokenizer=request.param())
    (teacher / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"eos_token_id": [1, 7], "pad_token_id": 1, "temperature": 0.6, "do_sample": True}
    (teacher / "generation_config.json").write_text(json.dumps(settings))
    student, card = hypenet(config, (0,)), ModelCard(teacher=teacher)
    params = random_params(student, seed=3)
    save_hf(place / "student", student, params, tokenizer_from=teacher, card=card)
    return place / "student"


def test_greedy_text_is_ours(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    generator = open_generator(folder, GenerationConfig(max_new_tokens=NEW))
    ours = {i: one for done in generator.complete(PROMPTS) for i, one in done.items()}
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=NEW, do_sample=False)[0]
        assert len(written) - ids["input_ids"].shape[1] == ours[i].tokens
        kept = written[: len(written) - ours[i].ended]
        assert tokenizer.decode(kept) == prompt + ours[i].text
    assert not all(one.ended for one in ours.values())


def test_settings_and_chat_template_are_the_teachers(folder):
    settings = transformers.GenerationConfig.from_pretrained(folder)
    assert (settings.eos_token_id, settings.temperature, settings.do_sample) == ([1, 7], 0.6, True)
    generator = open_generator(folder, GenerationConfig(max_new_tokens=NEW))
    assert generator.config.stop_tokens == (1, 7)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    messages = [{"role": "user", "content": "fox"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False)
    assert shown == "user: fox\nassistant:"
    assert tokenizer.eos_token == generator.tokenizer.end_token
    assert generator.tokenizer.config["chat_template"] == TEMPLATE
