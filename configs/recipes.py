"""What differs between the published conversions: numbers of the sizes, and the ways to run them."""

import dataclasses
from typing import Literal

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.presets import (
    HYPENET_2B_SOFTMAX_LAYERS,
    HYPENET_5B_SOFTMAX_LAYERS,
    HYPENET_9B_SOFTMAX_LAYERS,
    qwen3_1p7b,
    qwen3_4b,
    qwen3_8b,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the sizes.

    Attributes:
      name: of the conversion; files lie in runs/NAME.
      teacher_name: of the Qwen3 model, whose folder is models/TEACHER_NAME.
      teacher: its architecture.
      softmax_layers: those that keep softmax attention in the released model.
      peak_lr: of stage 2.
      logit_scale: constant a of log(t + a) / log(a) of the exported model.
      weights: precision of parameters and moments in the official code.
    """

    name: str
    teacher_name: str
    teacher: ModelConfig
    softmax_layers: tuple[int, ...]
    peak_lr: float
    logit_scale: float
    weights: Literal["float32", "bfloat16"]


# Peak rates: official stage-2 configurations. Logit scale: README of the release for 2B, its default for the others.
HALO_2B = Recipe(
    *("halo_2b", "Qwen3-1.7B", qwen3_1p7b(), HYPENET_2B_SOFTMAX_LAYERS),
    *(1e-4, 500.0, "bfloat16"),
)
HALO_5B = Recipe(
    *("halo_5b", "Qwen3-4B", qwen3_4b(), HYPENET_5B_SOFTMAX_LAYERS),
    *(5e-5, 362.0, "bfloat16"),
)
HALO_9B = Recipe(
    *("halo_9b", "Qwen3-8B", qwen3_8b(), HYPENET_9B_SOFTMAX_LAYERS),
    *(3e-5, 362.0, "float32"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How a conversion is run.

    Attributes:
      upstream: as the official code runs it: rows cross documents (one segment, one count of positions), every stage
        reads the text from its start, rotary frequencies and slopes are rounded in stages 1 and 2, parameters and
        moments have the recipe's precision, the first update has learning rate 0, and the head is tied.
      closed_form: ridge start before stage 1, and a refit between it and stage 2.
      shorten: so many times fewer steps than published in stages 1 and 2.
    """

    upstream: bool = False
    closed_form: bool = False
    shorten: int = 1


PRESETS = {
    "published": Preset(),
    "upstream_parity": Preset(upstream=True),
    "recommended": Preset(closed_form=True, shorten=5),
}
