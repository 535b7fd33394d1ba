"""A tiny teacher, its student, a tokenizer, and folders of them: for tests of this package and of yours.

Everything is made in about a second, without a download. Nothing here is trained: outputs are finite
and depend on every weight, and mean nothing.

    def test_my_command(tmp_path):
        folder = tiny_teacher_folder(tmp_path / "teacher")
        decoder, params = load_hf(folder)
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hypenet_jax.axes import Params
from hypenet_jax.data.tokenizer import Tokenizer, TrainedTokenizer, train_tokenizer
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.weights import FAMILIES, save_hf

VOCABULARY = 272
"""The end of a text, 256 bytes and 15 merges."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template whose earlier turns read the same whatever follows."""

SPREAD = {"kernel": (0.0, 0.2), "embedding": (0.0, 0.7), "scale": (1.0, 0.1), "bias": (0.0, 0.5)}
SPREAD |= {"log_rate": (0.0, 0.5), "taps": (0.0, 0.5)}
"""Mean and standard deviation of random weights, by the last name of their path."""


def tiny_teacher(
    vocab_size: int = VOCABULARY,
    *,
    family: str = "qwen3",
    layers: int = 2,
    tie_embeddings: bool = True,
) -> ModelConfig:
    """A teacher of width 32 with grouped heads: the number of key heads divides that of query heads.

    Args:
      family: its model type, one of `hypenet_jax.weights.FAMILIES`. The last layer of a smollm3 has no positions.
    """
    mixer = FAMILIES[family].mixer(4, 2, 8, theta=1e4)
    last = mixer.without_positions() if FAMILIES[family].has_nope else mixer
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=32,
        d_mlp=48,
        mixers=(*(mixer,) * (layers - 1), last),
        tie_embeddings=tie_embeddings,
    )


def tiny_student(vocab_size: int = VOCABULARY, *, layers: int = 2) -> ModelConfig:
    """The HypeNet of `tiny_teacher`: its last layer keeps softmax attention."""
    return hypenet(tiny_teacher(vocab_size, layers=layers), softmax_layers=(layers - 1,))


def random_params(config: ModelConfig, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Params:
    """Weights of single layers that are all random, norms too, so that one that is ignored shows.

    Nothing is compiled, and equal arguments give equal bits in every process.
    """
    decoder, random = Decoder(config, scan=False), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(random.normal(*SPREAD[path[-1].key], leaf.shape), dtype),
        shapes,
    )


def tiny_tokenizer(vocab_size: int = VOCABULARY, reserved: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE: every text can be written with it.

    Args:
      vocab_size: 257 to 280; `reserved` tokens come after these.
    """
    text = "the quick brown fox jumps over the lazy dog while the other fox sleeps"
    return train_tokenizer([text] * 3, TrainedTokenizer(vocab_size, reserved))


def tiny_chat_tokenizer(template: str = CHATML) -> Tokenizer:
    """`tiny_tokenizer` with two more tokens, <|im_start|> and <|im_end|>, which ends a turn, and a chat template."""
    plain = tiny_tokenizer(reserved=("<|im_start|>", "<|im_end|>"))
    config = {**plain.config, "eos_token": "<|im_end|>", "chat_template": template}
    return dataclasses.replace(plain, end_token="<|im_end|>", config=config)


def tiny_teacher_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Writes `tiny_teacher` with random weights and its tokenizer as a Hugging Face folder, which it returns."""
    return write_folder(path, tiny_teacher())


def tiny_student_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The same of `tiny_student`."""
    return write_folder(path, tiny_student(), seed=1)


def write_folder(
    path: str | pathlib.Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> pathlib.Path:
    """Writes any small model with `random_params` in float32 as a Hugging Face folder.

    Args:
      path: must not exist, or be empty.
      tokenizer: `tiny_tokenizer` unless given; needs no more ids than `config` has.
    """
    save_hf(path, config, random_params(config, seed), dtype="float32")
    (tokenizer or tiny_tokenizer()).save(path)
    return pathlib.Path(path)
