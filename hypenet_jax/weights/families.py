"""Models of transformers whose every layer is softmax attention: how each one's config.json says what it computes.

They differ in a few fields of `SoftmaxSpec`, and in what a file may leave out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec
from hypenet_jax.model.rope_scaling import RopeScaling

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
NOPE = "no_rope_layers"
"""One number per layer, 0 where it has no rotary positions."""
NOPE_INTERVAL = "no_rope_layer_interval"
"""Without `NOPE`: every so many layers one has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A model type.

    Attributes:
      architecture: the class of transformers.
      qk_norm, qkv_bias: fields of `SoftmaxSpec`.
      has_nope: layers may lack rotary positions, see `NOPE`.
      fixed: fields that must have this value where they stand, as nothing else is computed here.
      harmless: fields that say nothing about the computation.
      defaults: what transformers takes for a field that a file leaves out; files may then leave out `HEADS` but the
        first, too. Without them, nothing may be left out.
      window: the sliding window of every layer where the file names none.
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    has_nope: bool = False
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window: int | None = None

    def mixer(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        theta: float,
        scaling: RopeScaling | None = None,
    ) -> SoftmaxSpec:
        """The attention of its layers that have rotary positions."""
        return SoftmaxSpec(
            num_heads,
            num_kv_heads,
            head_dim,
            rope_theta=theta,
            rope_scaling=scaling,
            qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias,
        )


UNTIED: Mapping[str, Any] = {"tie_word_embeddings": False, "rope_theta": 1e4}
FAMILIES: Mapping[str, Family] = {
    "qwen3": Family(architecture="Qwen3ForCausalLM", qk_norm=True),
    "llama": Family(
        architecture="LlamaForCausalLM",
        fixed={"mlp_bias": False},
        harmless=("rope_interleaved", "is_llama_config", "transformers.js_config"),
        defaults=UNTIED,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        fixed={"use_mrope": False},
        defaults=UNTIED,
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        fixed={"mlp_bias": False},
        defaults=UNTIED,
        window=4096,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        has_nope=True,
        fixed={"mlp_bias": False},
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6, NOPE_INTERVAL: 4},
    ),
}


def completed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a config.json with those that its model type lets it leave out."""
    family = FAMILIES.get(str(fields.get("model_type")))
    if family is None or not family.defaults:
        return fields
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    known: dict[str, Any] = {"num_key_value_heads": heads, **family.defaults}
    if isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0:
        known["head_dim"] = width // heads
    if isinstance(new := fields.get("rope_parameters"), dict) and "rope_theta" in new:
        del known["rope_theta"]
    absent = {key: value for key, value in known.items() if fields.get(key) is None}
    return {**fields, **absent}


def family_of(mixers: Sequence[MixerSpec]) -> tuple[str, SoftmaxSpec] | None:
    """The first model type whose layers can be these mixers, and the one with rotary positions; None: there is none."""
    for spec in mixers:
        if isinstance(spec, SoftmaxSpec) and spec.rope_theta is not None:
            heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
            for name, family in FAMILIES.items():
                mixer = family.mixer(*heads, spec.rope_theta, spec.rope_scaling)
                nope = {mixer.without_positions()} if family.has_nope else set()
                if set(mixers) <= {mixer, *nope}:
                    return name, mixer
            return None
    return None
