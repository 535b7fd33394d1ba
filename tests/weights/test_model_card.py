"""The card of an exported student says what it was made of, and carries the teacher's licence over."""

import json

import pytest
from huggingface_hub import ModelCard as HubCard
from tiny_models import HYPENET, QWEN3

from hypenet_jax.testing import random_params
from hypenet_jax.weights import save_hf
from hypenet_jax.weights.model_card import ModelCard, card_text, hub_name, write_card

TEACHERS_CARD = """---
license: other
license_name: teachers-own
license_link: https://example.org/licence
language: [en, fr]
widget: [{text: hello}]
---
# A teacher
"""


@pytest.fixture
def teacher(tmp_path):
    folder = tmp_path / "models--owner--a-teacher.1B" / "snapshots" / "0"
    save_hf(folder, QWEN3, random_params(QWEN3), dtype="float32")
    (folder / "README.md").write_text(TEACHERS_CARD)
    return folder


def test_licence_language_and_name_of_the_teacher_are_carried_over(tmp_path, teacher):
    numbers = {"perplexity": 12.25, "tokens": 2_300_000_000}
    card = ModelCard(teacher=teacher, numbers=numbers)
    save_hf(tmp_path / "student", HYPENET, random_params(HYPENET), dtype="float32", card=card)
    written = HubCard.load(tmp_path / "student" / "README.md")
    assert written.data.to_dict() == {
        "license": "other",
        "license_name": "teachers-own",
        "license_link": "https://example.org/licence",
        "language": ["en", "fr"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "owner/a-teacher.1B",
        "tags": ["hypenet", "linear-attention", "long-context"],
    }
    for words in ("# student", "1 are softmax", "(0)", "teachers-own", "trust_remote_code=True"):
        assert words in written.text
    assert "| perplexity | 12.25 |\n| tokens | 2,300,000,000 |" in written.text


def test_without_a_teacher_the_card_claims_nothing(tmp_path):
    save_hf(tmp_path / "student", HYPENET, random_params(HYPENET), dtype="float32")
    written = HubCard.load(tmp_path / "student" / "README.md")
    assert not {"license", "base_model", "language"} & written.data.to_dict().keys()
    assert "Numbers" not in written.text
    assert "names none in its card" not in written.text


def test_a_card_is_written_anew_with_what_was_measured_later(tmp_path, teacher):
    save_hf(tmp_path / "student", HYPENET, random_params(HYPENET), dtype="float32")
    write_card(tmp_path / "student", ModelCard(teacher=teacher, numbers={"needle": 0.5}))
    assert "| needle | 0.5 |" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize(
    ("said", "name"), [("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B"), ("/tmp/x/y", None), ("x", None)]
)
def test_a_teacher_outside_the_cache_is_named_by_its_config(tmp_path, said, name):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": said}))
    assert hub_name(tmp_path) == name
    text = card_text({"mixer_types": ["attn"]}, ModelCard(teacher=tmp_path), "student")
    assert f"from `{name or tmp_path.name}`" in text


def test_token_ids_and_generation_settings_are_the_teachers(tmp_path, teacher):
    fields = json.loads((teacher / "config.json").read_text())
    fields |= {"eos_token_id": [7, 8], "max_position_embeddings": 64}
    (teacher / "config.json").write_text(json.dumps(fields))
    (teacher / "generation_config.json").write_text('{"temperature": 0.6}')
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    card, params = ModelCard(teacher=teacher), random_params(HYPENET)
    options = {"tokenizer_from": tmp_path / "text", "card": card}
    save_hf(tmp_path / "student", HYPENET, params, dtype="float32", **options)
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert written["eos_token_id"] == [7, 8]
    assert "max_position_embeddings" not in written  # the student's own is longer
    settings = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert settings == {"temperature": 0.6}
    assert (tmp_path / "student" / "tokenizer.json").exists()
