"""The weights and inputs of the golden cases, from their seeds.

They were drawn with torch on a CPU. Its generator is the Mersenne Twister that `numpy.random.RandomState` also is, and
its normal numbers are a Box-Muller transform in blocks of 16; both are written out here, so two megabytes of random
numbers need not be kept. Against the files they agree to 6e-7 (`record.py` checks it).
"""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.weights.hf_config import read_config
from hypenet_jax.weights.names import tensors

HERE = pathlib.Path(__file__).parent
VOCABULARY = 257

WEIGHTS = {"qwen3": 31001, "hypenet": 33001, "teacher": 37051}
"""Seed of each model; `configs/<name>.json` is its config.json."""

INPUTS = {
    "qwen3": (31002, (2, 107)),
    "hypenet": (33002, (2, 103)),
    "decoding": (36002, (2, 101)),
    "alignment": (37002, (2, 99)),
}
"""Seed and shape of the tokens of each case."""

ALIGNMENT_STUDENT = 37008
KL_LOGITS, KL_SHAPE = 38001, (2, 270, 31)


def raw(seed: int, count: int) -> np.ndarray:
    """The first `count` 32-bit numbers of the generator."""
    return np.random.RandomState(seed).randint(0, 2**32, size=count, dtype=np.uint32)


def tokens(case: str) -> np.ndarray:
    """The input tokens of a case, "B T"."""
    seed, shape = INPUTS[case]
    return (raw(seed, math.prod(shape)) % VOCABULARY).reshape(shape).astype(np.int32)


def labels(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Which predicted tokens count: weights "B T" of cases with a loss (the labels that are not -100)."""
    text = tokens(case)
    counted = np.ones(text.shape, np.float32)
    counted[0, :5] = 0
    counted[1, 30:40] = 0
    return text, counted


def checkpoint(model: str) -> dict[str, np.ndarray]:
    """Tensors of a model by their Hugging Face names, drawn in alphabetical order."""
    config = read_config_of(model)
    shapes = {t.theirs: t.their_shape for t in tensors(config)}
    stream = normal(raw(WEIGHTS[model], sum(math.prod(s) for s in shapes.values())))
    drawn, start = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        drawn[name] = _scaled(name, stream[start : start + size].reshape(shapes[name]))
        start += size
    return drawn


def alignment_student() -> list[dict[str, np.ndarray]]:
    """The new tensors of the stage-1 student of each layer: o_norm [64] and z_proj [64, 64]."""
    stream = normal(raw(ALIGNMENT_STUDENT, 4 * (64 + 64 * 64))).reshape(4, -1)
    return [
        {
            "o_norm": (1 + 0.25 * layer[:64]).astype(np.float32),
            "z_proj": (0.2 * layer[64:]).astype(np.float32).reshape(64, 64),
        }
        for layer in stream
    ]


def kl_logits() -> tuple[np.ndarray, np.ndarray]:
    """Student's and teacher's logits of the distillation case, "B T V", standard deviation 3."""
    count = math.prod(KL_SHAPE)
    numbers = raw(KL_LOGITS, 2 * (count + 16)).reshape(2, -1)
    student, teacher = (
        (3 * _normal_with_tail(part, count)).astype(np.float32).reshape(KL_SHAPE)
        for part in numbers
    )
    return student, teacher


def normal(numbers: np.ndarray) -> np.ndarray:
    """Box-Muller on blocks of 16: eight radii, then eight angles; float64."""
    uniform = (numbers & 0xFFFFFF).astype(np.float64) / 2**24
    radius, angle = np.moveaxis(uniform.reshape(-1, 2, 8), 1, 0)
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def write_checkpoint(model: str, folder: pathlib.Path) -> pathlib.Path:
    """The model as a Hugging Face folder: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config_file(model).read_text())
    safetensors.numpy.save_file(checkpoint(model), folder / "model.safetensors")
    return folder


def config_file(model: str) -> pathlib.Path:
    return HERE / "configs" / model / "config.json"


def read_config_of(model: str) -> ModelConfig:
    return read_config(config_file(model).parent)


def layer_scores() -> Mapping[str, object]:
    """The published scores of the 2B sweep, with what the official code makes of them."""
    return json.loads((HERE / "layer_selection_2b.json").read_text())


def _normal_with_tail(numbers: np.ndarray, count: int) -> np.ndarray:
    """torch draws the last 16 anew where the count is not a multiple of 16."""
    whole = count // 16 * 16
    return np.concatenate([normal(numbers[:whole])[: count - 16], normal(numbers[count:])])


def _scaled(name: str, drawn: np.ndarray) -> np.ndarray:
    if drawn.ndim == 1:
        scaled = np.maximum((1.5 if "q_norm" in name else 1.0) + 0.25 * drawn, 0.2)
    elif "embed_tokens" in name:
        scaled = 0.4 * drawn
    else:
        gain = 1.5 if "z_proj" in name or "o_gate" in name else 1.0
        scaled = gain * drawn / math.sqrt(drawn.shape[1])
    return scaled.astype(np.float32)
