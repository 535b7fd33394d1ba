"""The golden Qwen3 as a folder with a tokenizer, and the local tasks: all that an evaluation by the harness needs."""

import json
import pathlib
import runpy
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

TESTS = pathlib.Path(__file__).parents[1]
TASKS = pathlib.Path(__file__).with_name("harness_tasks")
# Ids as config.json of the golden model has them.
SPECIAL = ("<pad>", "<s>", "</s>")
CHAT = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def write_folder(folder: pathlib.Path, *, begins_texts: bool) -> pathlib.Path:
    """Args:
    begins_texts: the tokenizer puts <s> before every text, as some do; Qwen3's has no such token.
    """
    recipe = runpy.run_path(str(TESTS / "golden" / "golden_recipe.py"))
    recipe["write_checkpoint"]("qwen3", folder)
    tokenizer = _tokenizer(recipe["VOCABULARY"])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    if begins_texts:
        config["bos_token"] = "<s>"
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def local_tasks() -> list[dict[str, Any]]:
    """The configs in harness_tasks/tasks.json, made anew: the harness writes into them."""
    tasks = json.loads((TASKS / "tasks.json").read_text())
    return [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(TASKS / config.pop("data"))}},
            "validation_split": "validation",
            **config,
        }
        for name, config in tasks.items()
    ]


def _tokenizer(size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE of ASCII alone, so that whatever a random model writes is text."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    ascii_text = [chr(code) for code in (10, *range(32, 127))]
    alphabet = [
        pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(character)[0][0]
        for character in ascii_text
    ]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = [json.loads(line)["text"] for line in (TASKS / "text.jsonl").read_text().splitlines()]
    backend.train_from_iterator(texts, trainer)
    assert backend.get_vocab_size() == size
    return backend
