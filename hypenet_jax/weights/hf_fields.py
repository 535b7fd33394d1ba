"""The fields a `config.json` may hold: those read, those with one possible value, the harmless.

Those of mixers are in their files. Everything else is refused by name, all at once.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hypenet_jax.model import mixers
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.mixers.spec import group_problems
from hypenet_jax.weights.families import FAMILIES, HEADS, NOPE, NOPE_INTERVAL, Family

LARGEST = 2**31 - 1

# What is read: the field of `ModelConfig` that it holds, and its type; numbers are positive.
WIDTHS: Mapping[str, tuple[str, type]] = {
    "vocab_size": ("vocab_size", int),
    "hidden_size": ("d_model", int),
    "intermediate_size": ("d_mlp", int),
    "rms_norm_eps": ("norm_eps", float),
    "tie_word_embeddings": ("tie_embeddings", bool),
}
HYBRID = "hypenet"
PLAN = ("mixer_types", "mixer_type")  # The second is how the official README spells it.
READ = ("rope_theta", "rope_scaling", "rope_parameters", "layer_types", "sliding_window")
LONGEST = "max_position_embeddings"
# Nothing else is computed here, so these fields must have these values where they stand.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
}
# These say nothing about the computation.
NAMES = ("_name_or_path", "architectures", "model_type", "transformers_version")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
STORED_AS = ("dtype", "torch_dtype", "initializer_range")
LENGTHS = (LONGEST, "max_window_layers", "chunk_size_feed_forward")
CODE = ("auto_map", "attn_implementation", "_attn_implementation")  # never run here
CALLS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states")
TASKS = ("is_encoder_decoder", "id2label", "label2id", "problem_type")
# Switches of the official training code.
TRAINING = ("expand_kv_proj", "fused_ce_loss", "loss_fn", "shift_labels", "rand_init")
# Written by those who load and save for others.
SAVERS = ("_attn_implementation_autoset", "_commit_hash", "tokenizer_class", "unsloth_version")
# Of the official code, which computes something else where they have another value.
OFFICIAL: Mapping[str, Any] = {"attn_sqrtd": True}
OTHERS = (*CODE, *CALLS, *TASKS, *TRAINING, *SAVERS, "pretraining_tp")
HARMLESS = (*NAMES, *TOKEN_IDS, *STORED_AS, *LENGTHS, *OTHERS)
# Fields of the official mixers, harmless while the plan names none of them.
OTHER_MIXERS = ("gdn_", "kda_", "mamba2_")


def planned_mixers(fields: Mapping[str, Any]) -> list[type[MixerSpec]]:
    """The mixers that the layers of a hypenet name."""
    names = next((fields[key] for key in PLAN if key in fields), None)
    named = names if isinstance(names, list) else []
    return [kind for kind in mixers.MIXERS if kind.CHECKPOINT.kind in named]


def problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """What keeps this model from being computed exactly, one sentence each; `completed` comes first."""
    kind = fields.get("model_type")
    if kind != HYBRID and (not isinstance(kind, str) or kind not in FAMILIES):
        yield f"model_type {kind!r} is not supported, only {', '.join([*FAMILIES, HYBRID])}"
        return
    family = None if kind == HYBRID else FAMILIES[kind]
    yield from _field_problems(fields, family)
    heads, kv_heads, head_dim = HEADS
    yield from group_problems(fields, heads, kv_heads)
    width = fields.get(head_dim, 0)
    if is_a(width, int) and width % 2:
        yield f"head_dim {width} is odd; rotary positions turn pairs"
    yield from _window_problems(fields, family)
    if family is not None and family.has_nope:
        yield from _nope_problems(fields)
    if family is None:
        yield from _plan_problems(fields)
        for mixer in planned_mixers(fields):
            yield from mixer.hf_problems(fields)


def _field_problems(fields: Mapping[str, Any], family: Family | None) -> Iterator[str]:
    needed = {key: kind for key, (_, kind) in WIDTHS.items()}
    needed |= dict.fromkeys(("num_hidden_layers", *HEADS), int)
    fixed, known = dict(FIXED), {*READ, *HARMLESS}
    if family is not None:
        fixed |= family.fixed
        known |= {*family.harmless, *((NOPE, NOPE_INTERVAL) if family.has_nope else ())}
    else:
        fixed |= OFFICIAL
        for mixer in planned_mixers(fields):
            needed |= {key: kind for key, (_, kind) in mixer.CHECKPOINT.fields.items()}
            own = mixer.CHECKPOINT.own_fields
            needed |= dict.fromkeys((key for key in own if key in fields), bool)
            fixed |= mixer.CHECKPOINT.fixed
        formats = [mixer.CHECKPOINT for mixer in mixers.MIXERS]
        read = (key for f in formats for key in (*f.fields, *f.own_fields, *f.fixed, *f.ignored))
        known |= {*PLAN, *read}
    known |= {*needed, *fixed}
    for key, kind in needed.items():
        if key not in fields:
            yield f"{key} is missing"
        elif not is_a(fields[key], kind):
            yield f"{key} must be {kind.__name__}, got {fields[key]!r}"
    for key, value in fixed.items():
        if key in fields and fields[key] != value:
            yield f"{key} {fields[key]!r} is not supported, only {json.dumps(value)}"
    unread = tuple(p for p in OTHER_MIXERS if not any(key.startswith(p) for key in needed))
    set_to = {k: v for k, v in fields.items() if k not in known and v not in (None, "", [], {})}
    unknown = sorted(k for k in set_to if family or not k.startswith(unread))
    if unknown:
        yield f"unknown fields that may change the computation: {', '.join(unknown)}"


def is_a(value: Any, kind: type) -> bool:
    """Whether a value of a config.json is of this type; numbers are positive and not beyond all bounds."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    largest = LARGEST if kind is int else sys.float_info.max
    return isinstance(value, int if kind is int else int | float) and 0 < value <= largest


def _window_problems(fields: Mapping[str, Any], family: Family | None) -> Iterator[str]:
    always = None if family is None else family.window
    window, longest = fields.get("sliding_window", always), fields.get(LONGEST)
    off = always is None and "use_sliding_window" in fields
    beyond = is_a(window, int) and is_a(longest, int) and window >= longest
    if window is not None and not off and not beyond:
        yield (
            f"sliding_window {window!r} is not supported, only null or at least {LONGEST}, which is {longest!r}"
        )
    kinds = fields.get("layer_types")
    if kinds is not None and not _is_list_of(kinds, "full_attention"):
        yield f"layer_types {kinds!r} is not supported, only full_attention"


def _is_list_of(values: Any, *allowed: str | int) -> bool:
    return isinstance(values, list) and all(value in allowed for value in values)


def _nope_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    turns, layers = fields.get(NOPE), fields.get("num_hidden_layers")
    if turns is None and not is_a(fields.get(NOPE_INTERVAL), int):
        yield f"{NOPE_INTERVAL} must be int, got {fields.get(NOPE_INTERVAL)!r}"
    if turns is not None and not (_is_list_of(turns, 0, 1) and len(turns) == layers):
        yield f"{NOPE} must list num_hidden_layers zeros and ones, got {turns!r}"


def _plan_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    given = [key for key in PLAN if key in fields]
    if len(given) != 1:
        yield f"exactly one of {PLAN} must name the mixers, got {given or 'none'}"
        return
    kinds, known = fields[given[0]], [mixer.CHECKPOINT.kind for mixer in mixers.MIXERS]
    if not isinstance(kinds, list) or len(kinds) != fields.get("num_hidden_layers"):
        yield f"{given[0]} must list num_hidden_layers names, got {kinds!r}"
    elif not _is_list_of(kinds, *known):
        yield f"{given[0]} {kinds} is not supported, only {', '.join(known)}"
