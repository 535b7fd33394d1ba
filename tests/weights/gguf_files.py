"""Tiny GGUF files, written by the package's own writer as llama.cpp's converter writes them."""

import importlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.testing import random_params, tiny_tokenizer
from hypenet_jax.weights.names import flatten, tensors

NORMAL, CONTROL, UNUSED = 1, 3, 5
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "_proj.": ".",
}
ENDS = ("<|im_start|>", "<|im_end|>")


def gguf_name(name: str) -> str:
    for theirs, in_file in NAMES.items():
        name = name.replace(theirs, in_file)
    return name


def neighbors(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`: rows j and j + H/2 of each head become neighbours."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def hugging_face_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    params = flatten(random_params(config, seed))
    return {
        t.theirs: np.ascontiguousarray(t.to_theirs(np.asarray(params[t.ours])))
        for t in tensors(config)
    }


def stored_tensors(config: ModelConfig, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    spec: Any = config.mixers[0]
    heads = {"attn_q.": spec.num_heads, "attn_k.": spec.num_kv_heads}
    for theirs, values in hugging_face_tensors(config).items():
        name = gguf_name(theirs)
        for part, count in heads.items():
            if part in name and architecture in ("llama", "smollm3"):
                values = neighbors(values, count)
        yield name, values


def metadata(config: ModelConfig, architecture: str) -> dict[str, Any]:
    spec: Any = config.mixers[0]
    sizes: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": 64,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_mlp,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": np.float32(spec.rope_theta),
        "attention.layer_norm_rms_epsilon": np.float32(config.norm_eps),
    }
    return {f"{architecture}.{key}": value for key, value in sizes.items()}


def tokenizer_metadata(tokenizer: Tokenizer, pre: str = "gpt-2") -> dict[str, Any]:
    model = json.loads(tokenizer.backend.to_str())["model"]
    vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    prefix = "tokenizer.ggml."
    return {
        prefix + "model": "gpt2",
        prefix + "pre": pre,
        prefix + "tokens": tokens,
        prefix + "token_type": [CONTROL if token in special else NORMAL for token in tokens],
        prefix + "merges": [" ".join(pair) for pair in model["merges"]],
        prefix + "bos_token_id": vocab[ENDS[0]],
        prefix + "eos_token_id": vocab[ENDS[1]],
        prefix + "padding_token_id": vocab[ENDS[1]],
    }


def write(
    path: pathlib.Path,
    architecture: str,
    fields: Mapping[str, Any],
    arrays: Sequence[tuple[str, np.ndarray, str]],
) -> pathlib.Path:
    """Fields by key, None left out; arrays with ggml's name of their type, those of bytes as they are."""
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        np.float32: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in fields.items():
        if value is not None:
            add[type(value)](key, value)
    for name, values, kind in arrays:
        number = gguf.GGMLQuantizationType[kind]
        raw = values if values.dtype == np.uint8 else gguf.quantize(values, number)
        writer.add_tensor(name, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(
    path: pathlib.Path,
    config: ModelConfig,
    architecture: str = "llama",
    *,
    kind: str = "F32",
    tokenizer: Tokenizer | None = None,
    changed: Mapping[str, Any] | None = None,
    extra: Sequence[tuple[str, np.ndarray, str]] = (),
) -> pathlib.Path:
    """A whole model of random weights; matrices whose rows are whole blocks are of this kind, all else F32.

    Args:
      changed: fields that differ; None leaves one out.
      extra: further tensors.
    """
    words = tokenizer_metadata(tokenizer or tiny_tokenizer(272, ENDS))
    fields = {**metadata(config, architecture), **words, **(changed or {})}
    gguf = importlib.import_module("gguf")
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    arrays = [
        (name, values, kind if values.ndim > 1 and values.shape[-1] % block == 0 else "F32")
        for name, values in stored_tensors(config, architecture)
    ]
    return write(path, architecture, fields, [*arrays, *extra])
