"""A tiny model that writes capital letters and ends of turns alone, so that answers are read as written."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.generation import GenerationConfig, Sampling, TextGenerator
from hypenet_jax.model.config import hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.testing import CHATML, random_params, tiny_chat_tokenizer, tiny_teacher
from hypenet_jax.weights import save_hf

TOKENIZER = tiny_chat_tokenizer()
CONFIG = hypenet(tiny_teacher(TOKENIZER.vocab_size, tie_embeddings=False), softmax_layers=(1,))
SYSTEM = {"role": "system", "content": "Be brief."}
# What is new fits into 32 tokens and the whole into 256: two programs read, and one writes.
SAID = ["a fox jumps over the lazy dog, then it eats", "so", "?"]
NEW, SEED = 5, 5


def speller():
    """Weights whose logits are 0 but for capital letters and the end token, of which one is nearly always greater."""
    params = random_params(CONFIG)
    head = np.asarray(params["head"]["kernel"])
    letters = [TOKENIZER.id_of(letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    rows = np.zeros_like(head)
    rows[letters], rows[TOKENIZER.end_id] = 10 * head[letters], 18 * head[TOKENIZER.end_id]
    return {**params, "head": {"kernel": jnp.asarray(rows)}}


def letters_folder(path: pathlib.Path) -> pathlib.Path:
    """The model and its tokenizer as a Hugging Face folder."""
    save_hf(path, CONFIG, speller(), dtype="float32")
    TOKENIZER.save(path)
    return path


def generator_of(template=CHATML, params=None, arguments=None, **config) -> TextGenerator:
    tokenizer = dataclasses.replace(
        TOKENIZER, config={**TOKENIZER.config, "chat_template": template}
    )
    given = {"max_new_tokens": NEW, "sampling": Sampling(1.0), "seed": SEED, **config}
    return TextGenerator(
        decoder=Decoder(CONFIG, jnp.float32),
        params=jax.device_put(speller() if params is None else params, jax.devices()[0]),
        tokenizer=tokenizer,
        config=GenerationConfig(stop_tokens=(tokenizer.end_id,), **given),
        template_arguments=arguments or {},
    )


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, special_tokens=True))
