"""The fields of a HypeNet's config.json, for transformers."""

import math
from typing import Any, ClassVar

from transformers import PretrainedConfig

SOFTMAX, LIGHTNING = "attn", "lightning-attn"
ROTARY = ("default", "linear", "llama3", "yarn")
SCALES = ("1/sqrt(d)", "1/d", "1")
# Nothing else is computed, so where these fields stand they have these values.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "attn_sqrtd": True,
    "lightning_use_short_conv": False,
    "lightning_rope_scaling": None,
}
NEEDED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "mixer_types"),
)
# Those of absent mixers may be absent too.
NEEDED_OF = {
    SOFTMAX: ("attn_use_rope", "attn_use_output_gate", "attn_logits_scaling"),
    LIGHTNING: (
        *("lightning_nh", "lightning_nkv", "lightning_head_dim", "lightning_scale"),
        *("lightning_use_rope", "lightning_use_qk_norm"),
        *("lightning_use_output_norm", "lightning_use_output_gate"),
    ),
}


class HypeNetConfig(PretrainedConfig):
    """A decoder whose layers are softmax or lightning attention, as `mixer_types` lists them.

    The names are those of the official HypeNet code; the three with a default are ours. Everything that would be
    computed differently is listed in one ValueError.
    """

    model_type = "hypenet"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    has_no_defaults_at_init = True
    # Saved only where config.json has them.
    attn_use_qk_norm = True
    attn_use_qkv_bias = False
    lightning_use_qkv_bias = False

    def __init__(self, rope_parameters: dict[str, Any] | None = None, **fields: Any) -> None:
        # Neither transformers 4 nor 5 may see the spelling of the other.
        old = fields.pop("rope_scaling", None) or {}
        theta = fields.pop("rope_theta", None)
        rotary = {"rope_theta": theta, **old, **(rope_parameters or {})}
        rotary["rope_type"] = rotary.get("rope_type") or rotary.pop("type", None) or "default"
        if original := rotary.get("original_max_position_embeddings"):
            # transformers compares the two.
            longest = fields.pop("max_position_embeddings", None)
            self.max_position_embeddings = longest or int(original * rotary["factor"])
        self.rope_parameters = rotary
        self.rope_theta = rotary["rope_theta"]
        # transformers itself makes an empty one; a model is made of a whole one.
        wrong = _problems(fields, rotary) if fields.get("mixer_types") is not None else []
        if wrong:
            raise ValueError("this HypeNet cannot be computed exactly:\n  " + "\n  ".join(wrong))
        for name in NEEDED:
            setattr(self, name, fields.pop(name, None))
        super().__init__(**fields)
        # transformers 5 leaves these to the classes of models.
        self.use_cache = fields.get("use_cache", True)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, name, fields.get(name))

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved; transformers 4 leaves out what equals its defaults, and nothing here has one."""
        return {**super().to_diff_dict(), "tie_word_embeddings": self.tie_word_embeddings}


def read_logit_scale(written: Any) -> tuple[bool, float] | None:
    """attn_logits_scaling: null, a number, "hype" (a = 362) or "hype 500"; anything else is a ValueError.

    Returns whether the factor grows with the position t, as log(t + a) / log(int(a)), and a or the constant.
    """
    if written is None or (isinstance(written, int | float) and written > 0):
        return None if written is None else (False, float(written))
    words = str(written).split()
    if words[:1] != ["hype"] or len(words) > 2:
        raise ValueError(f'{written!r} is none of null, a positive number, "hype", "hype 500"')
    base = float(words[1]) if len(words) == 2 else 362.0
    if not 2 <= base < math.inf:
        raise ValueError(f"{written!r}: the constant must be at least 2 and finite")
    return True, base


def _problems(fields: dict[str, Any], rotary: dict[str, Any]) -> list[str]:
    kinds = fields["mixer_types"]
    needed = [*NEEDED, *(name for kind in NEEDED_OF if kind in kinds for name in NEEDED_OF[kind])]
    wrong = [f"{name} is missing" for name in needed if name not in fields]
    wrong += [
        f"{name} is {fields[name]!r}, only {value!r} is computed"
        for name, value in FIXED.items()
        if name in fields and fields[name] != value
    ]
    unknown = sorted({str(kind) for kind in kinds} - NEEDED_OF.keys())
    wrong += [f"mixer_types has {kind!r}; known are {', '.join(NEEDED_OF)}" for kind in unknown]
    if len(kinds) != fields.get("num_hidden_layers"):
        wrong.append(f"mixer_types lists {len(kinds)} layers, not num_hidden_layers")
    if rotary["rope_type"] not in ROTARY or rotary["rope_theta"] is None:
        wrong.append(f"rope_parameters {rotary} need a base and one of {ROTARY}")
    if LIGHTNING in kinds and fields.get("lightning_nh", 0) % fields.get("lightning_nkv", 1):
        wrong.append("lightning_nh is no multiple of lightning_nkv")
    if LIGHTNING in kinds and fields.get("lightning_scale") not in SCALES:
        wrong.append(f"lightning_scale {fields.get('lightning_scale')!r} is none of {SCALES}")
    try:
        read_logit_scale(fields.get("attn_logits_scaling"))
    except ValueError as error:
        wrong.append(f"attn_logits_scaling: {error}")
    return wrong
