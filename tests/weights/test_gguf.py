"""A GGUF file becomes a folder with the same weights, numbers of any type, and says what it is not."""

import dataclasses
import importlib
import runpy
import sys

import numpy as np
import pytest
from gguf_files import hugging_face_tensors, neighbors, write, write_model
from huggingface_hub import metadata_load
from safetensors.numpy import load_file

from hypenet_jax.gguf import Unsaid, convert_gguf
from hypenet_jax.gguf.fields import rope_divisors
from hypenet_jax.gguf.file import open_gguf
from hypenet_jax.gguf.tensors import rotary_halves
from hypenet_jax.model.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from hypenet_jax.testing import tiny_teacher
from hypenet_jax.weights import CheckpointError, read_config
from hypenet_jax.weights.verify import our_logits, their_logits

pytest.importorskip("gguf", reason="reads GGUF files: pip install gguf")

pytestmark = pytest.mark.extended

QWEN3 = tiny_teacher(280, layers=1, tie_embeddings=False)
NOTHING = Unsaid()
QUANTIZED = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "smollm3"])
def test_a_folder_holds_the_weights_of_the_file(tmp_path, architecture, tied):
    layers = 4 if architecture == "smollm3" else 1
    model = tiny_teacher(280, family=architecture, layers=layers, tie_embeddings=tied)
    path = write_model(tmp_path / "model.gguf", model, architecture)
    converted = convert_gguf(path, tmp_path / "hf", NOTHING)
    assert converted.config == read_config(tmp_path / "hf") == model
    assert converted.dtype == "float32"
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    expected = hugging_face_tensors(model)
    assert stored.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(stored[name], values)


SCALINGS = {
    "linear": ({"type": "linear", "factor": np.float32(4)}, LinearScaling(4.0)),
    "yarn": (
        {"type": "yarn", "factor": np.float32(4), "original_context_length": 16},
        YarnScaling(4.0, 16),
    ),
    "none": ({"type": "none"}, None),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_rotary_positions_are_read(tmp_path, kind):
    fields, scaling = SCALINGS[kind]
    changed = {f"qwen3.rope.scaling.{key}": value for key, value in fields.items()}
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3", changed=changed)
    assert convert_gguf(path, tmp_path / "hf", NOTHING).config.mixers[0].rope_scaling == scaling


def test_the_scaling_of_llama_3_follows_from_its_divisors(tmp_path):
    model, scaling = tiny_teacher(280, family="llama"), Llama3Scaling(8.0, 1.0, 4.0, 8192)
    divisors = rope_divisors(scaling, 8, 5e5)
    assert divisors[0] == 1
    assert divisors[-1] == 8
    changed = {"llama.rope.freq_base": np.float32(5e5)}
    for name, values in (("right", divisors), ("other", divisors + np.float32([0, 1, 0, 0]))):
        extra = [("rope_freqs.weight", values, "F32")]
        write_model(tmp_path / f"{name}.gguf", model, changed=changed, extra=extra)
    converted = convert_gguf(tmp_path / "right.gguf", tmp_path / "hf", NOTHING)
    assert read_config(tmp_path / "hf").mixers[0].rope_scaling == scaling
    assert converted.config.mixers[0].rope_scaling == scaling
    with pytest.raises(CheckpointError, match="does not follow from Llama3Scaling"):
        convert_gguf(tmp_path / "other.gguf", tmp_path / "new", NOTHING)


def test_rows_whose_neighbors_rotate_come_as_halves():
    # Two heads of four rows: pairs (0, 1), (2, 3) become (0, 2), (1, 3) of a head.
    rows = np.arange(8.0)[:, None]
    assert rotary_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rotary_halves(rows[:, 0], 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(rotary_halves(neighbors(rows, 2), 2), rows)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_type_is_read_as_the_package_dequantizes_it(tmp_path, kind):
    gguf = importlib.import_module("gguf")
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    draw = np.random.default_rng(0)
    if kind.endswith("_K"):  # the package only reads these; small bytes are finite scales
        raw = draw.integers(0, 64, (3, 512 // block * size), dtype=np.uint8)
    else:
        raw = gguf.quantize(draw.normal(size=(3, 512)).astype(np.float32), number)
    path = write(tmp_path / "one.gguf", "qwen3", {}, [("one", raw.view(np.uint8), kind)])
    stored = open_gguf(path).tensors["one"]
    assert (stored.kind, stored.shape) == (kind, (3, 512))
    values = stored.read()
    np.testing.assert_array_equal(values, gguf.dequantize(raw, number))
    assert values.dtype == np.float32


def test_what_is_bfloat16_stays_so(tmp_path):
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3", kind="BF16")
    assert convert_gguf(path, tmp_path / "fine", NOTHING).dtype == "float32"  # random norms
    gguf = importlib.import_module("gguf")
    reader, arrays = gguf.GGUFReader(path), []
    for tensor in reader.tensors:
        vector = np.ones_like(tensor.data) if tensor.tensor_type.name == "F32" else tensor.data
        arrays.append((tensor.name, np.array(vector), tensor.tensor_type.name))
    fields = {
        field.name: field.contents()
        if field.types[0].name != "FLOAT32"
        else np.float32(field.contents())
        for field in reader.fields.values()
        if not field.name.startswith(("GGUF.", "general."))
    }
    whole = write(tmp_path / "whole.gguf", "qwen3", fields, arrays)
    assert convert_gguf(whole, tmp_path / "hf", NOTHING).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"general.type": "adapter"}, "holds no model: its general.type is 'adapter'"),
        ({"split.count": 3}, "one of 3 parts; join them"),
        ({"qwen3.expert_count": 8}, "expert_count 8 is not supported, only 0"),
        ({"qwen3.attention.causal": False}, "causal False is not supported, only True"),
        ({"qwen3.attention.value_length": 4}, "value_length 4 is not supported, only 8"),
        ({"qwen3.rope.dimension_count": 6}, "dimension_count 6 is not supported, only 8"),
        (
            {"qwen3.attention.sliding_window": 32},
            "may change the computation: qwen3.attention.slid",
        ),
        ({"qwen3.logit_scale": np.float32(2)}, "may change the computation: qwen3.logit_scale"),
        ({"qwen3.attention.head_count": [4, 4]}, r"must be int, got \[4, 4\]"),
        ({"qwen3.attention.layer_norm_rms_epsilon": None}, "rms_norm_eps is missing"),
        ({"qwen3.block_count": 2}, r"missing: blk.1.attn_norm.weight \(32,\)"),
        ({"qwen3.vocab_size": 300}, r"misshapen: token_embd.weight is \(280, 32\)"),
        ({"qwen3.rope.scaling.type": "longrope"}, "longrope"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(tmp_path, changed, said):
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3", changed=changed)
    with pytest.raises(CheckpointError, match=said) as error:
        convert_gguf(path, tmp_path / "hf", NOTHING)
    assert str(path) in str(error.value)
    assert not (tmp_path / "hf").exists()


def test_the_command_says_what_the_folder_does_not_hold(tmp_path, capsys, monkeypatch):
    path = write_model(tmp_path / "model.gguf", tiny_teacher(300), "qwen3", kind="Q8_0")
    monkeypatch.setattr(sys, "argv", ["convert", str(path), str(tmp_path / "hf")])
    runpy.run_module("launch.convert", run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("hf: float32, 2 layers")
    assert printed[1].startswith("26 of 300 rows of the embedding are no token")


def test_another_architecture_is_refused_by_name(tmp_path):
    path = write(tmp_path / "model.gguf", "mamba", {}, [])
    with pytest.raises(CheckpointError, match="'mamba' is not supported, only llama, qwen2"):
        convert_gguf(path, tmp_path / "hf", NOTHING)


def test_tensors_of_no_use_here_are_listed(tmp_path):
    extra = [("blk.0.attn_q.bias", np.zeros(32, np.float32), "F32")]
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3", extra=extra)
    with pytest.raises(CheckpointError, match=r"unexpected: blk.0.attn_q.bias \(32,\)"):
        convert_gguf(path, tmp_path / "hf", NOTHING)


def test_a_damaged_file_is_one_clear_error(tmp_path):
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3")
    whole = path.read_bytes()
    for cut in (0, 3, 100, len(whole) // 3, len(whole) - 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="no whole GGUF file"):
            convert_gguf(path, tmp_path / "hf", NOTHING)
    with pytest.raises(FileNotFoundError, match="is no file"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "hf", NOTHING)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    bad = [("output.weight", np.full((280, 32), np.inf, np.float32), "F32")]
    tied = dataclasses.replace(QWEN3, tie_embeddings=True)
    path = write_model(tmp_path / "model.gguf", tied, "qwen3", extra=bad)
    with pytest.raises(CheckpointError, match=r"output.weight holds numbers that are not finite"):
        convert_gguf(path, tmp_path / "hf", NOTHING)
    assert not (tmp_path / "hf").exists()


def test_licence_and_languages_are_in_the_card(tmp_path):
    changed = {"general.name": "Tiny", "general.license": "apache-2.0", "general.languages": ["en"]}
    path = write_model(tmp_path / "model.gguf", QWEN3, "qwen3", changed=changed)
    convert_gguf(path, tmp_path / "hf", NOTHING)
    card = (tmp_path / "hf" / "README.md").read_text()
    front = metadata_load(tmp_path / "hf" / "README.md")
    assert front == {"license": "apache-2.0", "language": ["en"]}
    assert "# Tiny\n\nConverted from `model.gguf` (F32)" in card


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "Q8_0"), ("qwen2", "F32")])
def test_transformers_reads_the_same_model_out_of_the_file(tmp_path, architecture, kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    # It takes the number of tokens for that of rows, and no width of heads from a file of qwen3.
    model = tiny_teacher(274, family=architecture)
    write_model(tmp_path / "model.gguf", model, architecture, kind=kind)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "hf", NOTHING)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    for name, values in stored.items():
        np.testing.assert_array_equal(values, read.state_dict()[name].numpy())
    ours, theirs = our_logits(tmp_path / "hf"), their_logits(tmp_path / "hf")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
