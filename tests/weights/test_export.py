"""An export appears complete or not at all, with official names, from any layout."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_models import HYPENET, QWEN3

from hypenet_jax.model.mixers import MIXERS
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.testing import random_params
from hypenet_jax.weights import export, read_hf, save_hf
from hypenet_jax.weights.names import flatten

CODE_FILES = (
    "attention_hypenet.py",
    "configuration_hypenet.py",
    "modeling_hypenet.py",
    "rotary_hypenet.py",
    "tokens_hypenet.py",
)


def test_transposed_views_are_written_in_order(tmp_path):
    params = jax.tree.map(
        lambda leaf: np.ascontiguousarray(np.asarray(leaf).T).T, random_params(QWEN3)
    )
    assert not params["embed"]["embedding"].flags.c_contiguous
    save_hf(tmp_path / "out", QWEN3, params, dtype="float32")
    np.testing.assert_array_equal(
        load_file(tmp_path / "out/model.safetensors")["model.embed_tokens.weight"],
        params["embed"]["embedding"],
    )
    for path, leaf in flatten(read_hf(tmp_path / "out")[1]).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])


def test_both_groupings_write_the_same_tensors(tmp_path):
    params = random_params(HYPENET)
    save_hf(tmp_path / "single", HYPENET, params, dtype="bfloat16")
    save_hf(tmp_path / "stacked", HYPENET, stack_layers(params, HYPENET), dtype="bfloat16")
    single, stacked = (
        load_file(tmp_path / name / "model.safetensors") for name in ("single", "stacked")
    )
    assert single.keys() == stacked.keys()
    for name, tensor in single.items():
        np.testing.assert_array_equal(tensor, stacked[name])


def test_the_index_places_every_tensor_in_a_file_of_at_most_the_asked_size(tmp_path):
    save_hf(tmp_path, QWEN3, random_params(QWEN3), dtype="float32", max_shard_bytes=9_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {name: load_file(tmp_path / name) for name in set(index["weight_map"].values())}
    assert index["weight_map"] == {t: name for name, file in files.items() for t in file}
    assert len(files) == len(list(tmp_path.glob("*.safetensors"))) > 1
    count = sum(leaf.size for leaf in jax.tree.leaves(random_params(QWEN3)))
    assert index["metadata"] == {"total_parameters": count, "total_size": 4 * count}
    assert all(sum(t.nbytes for t in file.values()) <= 9_000 for file in files.values())


def test_files_carry_the_mark_transformers_looks_for(checkpoint):
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_whoever_may_read_one_file_may_read_all(checkpoint):
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1


def test_a_tied_model_has_no_head(tmp_path, checkpoint):
    config, params = read_hf(checkpoint)
    assert "lm_head.weight" in (checkpoint / "model.safetensors.index.json").read_text()
    tied = export.ModelConfig(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_mlp=config.d_mlp,
        mixers=config.mixers,
        tie_embeddings=True,
    )
    kept = {name: tree for name, tree in params.items() if name != "head"}
    save_hf(tmp_path / "tied", tied, kept, dtype="float32")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        save_hf(tmp_path / "out", QWEN3, random_params(QWEN3), dtype="float32")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "note"]


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(export, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_hf(tmp_path / "out", QWEN3, random_params(QWEN3), dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_listed_and_nothing_is_written(tmp_path):
    params = random_params(QWEN3)
    wrong = {
        **{name: tree for name, tree in params.items() if name != "head"},
        "final_norm": {"scale": np.ones(5, np.float32)},
        "layer_3": params["layer_2"],
    }
    with pytest.raises(ValueError, match="not those of the config") as error:
        save_hf(tmp_path / "out", QWEN3, wrong, dtype="float32")
    for words in (
        "missing: head/kernel",
        "misshapen: final_norm/scale is (5,)",
        "unexpected: layer_3",
    ):
        assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_generation_settings_and_token_ids_come_along_and_code_does_not(tmp_path):
    source = tmp_path / "source"
    save_hf(source, QWEN3, random_params(QWEN3), dtype="float32")
    fields = json.loads((source / "config.json").read_text())
    fields |= {"eos_token_id": 39, "auto_map": {"AutoModel": "modeling.Model"}}
    (source / "config.json").write_text(json.dumps(fields))
    for name in ("tokenizer.json", "merges.txt", "modeling.py", "pytorch_model.bin"):
        (source / name).write_text(name)
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    save_hf(
        tmp_path / "out", HYPENET, random_params(HYPENET), dtype="float32", tokenizer_from=source
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "merges.txt",
        "README.md",
        *CODE_FILES,
    }
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["eos_token_id"], fields["model_type"]) == (39, "hypenet")
    assert fields["auto_map"] == export.AUTO_MAP  # ours, and not that of the source
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.6}


def test_a_hypenet_has_the_code_that_transformers_runs_it_by_and_a_qwen3_needs_none(tmp_path):
    for name, config in (("student", HYPENET), ("teacher", QWEN3)):
        save_hf(tmp_path / name, config, random_params(config), dtype="float32")
    written = {path.name: path.read_text() for path in (tmp_path / "student").glob("*.py")}
    assert set(written) == set(CODE_FILES)
    fields = json.loads((tmp_path / "student" / "config.json").read_text())
    for place in fields["auto_map"].values():
        module, name = place.split(".")
        assert f"class {name}(" in written[f"{module}.py"]
    assert read_hf(tmp_path / "student")[0] == HYPENET
    for mixer in MIXERS:
        kind = f'"{mixer.CHECKPOINT.kind}"'
        assert mixer.CHECKPOINT.in_transformers == (kind in written["configuration_hypenet.py"])
    assert not list((tmp_path / "teacher").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "teacher" / "config.json").read_text())
