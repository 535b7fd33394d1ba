"""Damaged, incomplete and hostile folders are refused before reading, with all reasons at once."""

import json
import pathlib
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hypenet_jax.weights import CheckpointError, read_hf
from hypenet_jax.weights.shards import INDEX


def change_index(folder: pathlib.Path, tensor: str, file: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][tensor] = file
    (folder / INDEX).write_text(json.dumps(index))


def change_tensors(folder: pathlib.Path, **changes: np.ndarray | None) -> None:
    """All tensors in one file, some of them replaced, added or (None) left out."""
    tensors = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    tensors |= changes
    kept = {k: v for k, v in tensors.items() if v is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.safetensors"))


def refused(folder: pathlib.Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_hf(folder)
    for word in words:
        assert word in str(error.value)


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(checkpoint):
    change_tensors(
        checkpoint,
        **{
            "model.norm.weight": None,
            "model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32),
            "model.layers.1.mlp.up_proj.weight": np.zeros((24, 36), np.float32),
            "model.layers.2.input_layernorm.weight": np.zeros(24, np.int8),
        },
    )
    refused(
        checkpoint,
        "missing: model.norm.weight (24,)",
        "unexpected: model.layers.0.self_attn.q_proj.bias",
        "misshapen: model.layers.1.mlp.up_proj.weight is (24, 36), the config needs (36, 24)",
        "type: model.layers.2.input_layernorm.weight is I8",
    )


def test_an_untied_model_needs_its_head(checkpoint):
    change_tensors(checkpoint, **{"lm_head.weight": None})
    refused(checkpoint, "missing: lm_head.weight")


def test_a_shard_that_is_absent_is_named(checkpoint):
    shards(checkpoint)[1].unlink()
    refused(checkpoint, shards(checkpoint)[0].name.replace("00001-of", "00002-of"), "absent")


def test_a_shard_too_many_is_named(checkpoint):
    (checkpoint / "model-00009-of-00009.safetensors").write_bytes(
        shards(checkpoint)[0].read_bytes()
    )
    refused(checkpoint, "model-00009-of-00009.safetensors")


def test_files_without_an_index_do_not_count_as_complete(checkpoint):
    (checkpoint / INDEX).unlink()
    refused(checkpoint, INDEX)


@pytest.mark.parametrize(
    "name",
    [
        "../checkpoint/model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "config.json",
    ],
)
def test_an_index_cannot_name_files_outside_the_folder(checkpoint, name):
    change_index(checkpoint, "model.norm.weight", name)
    refused(checkpoint, repr(name))


def test_an_index_must_tell_the_truth(checkpoint):
    last_file = shards(checkpoint)[-1].name
    change_index(checkpoint, "lm_head.weight", last_file)
    change_index(checkpoint, "model.other.weight", last_file)
    refused(checkpoint, "lm_head.weight is not in", "model.other.weight is not in")


def test_a_name_twice_in_the_index_is_refused(checkpoint):
    text = (checkpoint / INDEX).read_text()
    line = next(x for x in text.splitlines() if "model.norm.weight" in x)
    (checkpoint / INDEX).write_text(text.replace(line, f"{line.rstrip(',')},\n{line}"))
    refused(checkpoint, "model.norm.weight")


def test_a_tensor_in_two_files_is_refused(checkpoint):
    first, second = shards(checkpoint)[:2]
    tensors = load_file(second) | {"model.embed_tokens.weight": np.zeros((40, 24), np.float32)}
    save_file(tensors, second)
    refused(checkpoint, f"model.embed_tokens.weight is in {first.name} and in {second.name}")


def huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 1 << 40) + data[8:]


def overlapping(data: bytes) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    entries = [v for k, v in header.items() if k != "__metadata__"]
    entries[-1]["data_offsets"] = entries[0]["data_offsets"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


DAMAGE = {
    "truncated by one byte": lambda data: data[:-1],
    "one byte too many": lambda data: data + b"\0",
    "cut in the header": lambda data: data[:100],
    "empty": lambda data: b"",
    "huge header": huge_header,
    "header is no JSON": lambda data: data[:8] + b"x" * (len(data) - 8),
    "overlapping tensors": overlapping,
    "a shape that lies": lambda data: data.replace(b"[24", b"[25", 1),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_shard_is_named(checkpoint, how):
    file = shards(checkpoint)[1]
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    refused(checkpoint, file.name)


def test_pickles_are_never_loaded(checkpoint):
    for file in shards(checkpoint):
        file.unlink()
    (checkpoint / INDEX).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(checkpoint, "pytorch_model.bin", "safetensors")


def test_a_folder_without_weights_says_so(checkpoint):
    for file in shards(checkpoint):
        file.unlink()
    (checkpoint / INDEX).unlink()
    refused(checkpoint, "no .safetensors file")
    refused(checkpoint / "nowhere", "nowhere")


def test_other_tensor_files_stay_closed(checkpoint):
    (checkpoint / "adapter.safetensors").write_bytes(b"not even a header")
    read_hf(checkpoint)
