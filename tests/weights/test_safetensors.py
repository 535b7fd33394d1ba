"""What was written comes back bit for bit, in the asked type, where it was asked to live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import HYPENET, QWEN3

from hypenet_jax.axes import Params
from hypenet_jax.model.decoder import Decoder, logical_axes
from hypenet_jax.sharding import MeshConfig, make_mesh, sharding_of
from hypenet_jax.testing import random_params
from hypenet_jax.weights import CheckpointError, load_hf, read_hf, save_hf
from hypenet_jax.weights.names import flatten

TIED = dataclasses.replace(QWEN3, tie_embeddings=True)
TIED_HYPENET = dataclasses.replace(HYPENET, tie_embeddings=True)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def assert_bit_equal(first: Params, second: Params) -> None:
    first, second = flatten(first), flatten(second)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        assert leaf.dtype == second[path].dtype, path
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(second[path]), err_msg=path)


@pytest.mark.parametrize("max_shard_bytes", [2**30, 9_000])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("config", [QWEN3, TIED, HYPENET, TIED_HYPENET])
def test_export_then_import_is_bit_equal(tmp_path, config, dtype, max_shard_bytes):
    params = random_params(config, dtype=jnp.dtype(dtype))
    save_hf(tmp_path / "out", config, params, dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out" / "model.safetensors").exists() == (max_shard_bytes == 2**30)
    read_config, read = read_hf(tmp_path / "out")
    assert read_config == config
    assert_bit_equal(read, params)


def test_import_then_export_then_import_is_bit_equal(tmp_path, checkpoint):
    config, params = read_hf(checkpoint)
    save_hf(tmp_path / "again", config, params, dtype="float32")
    assert_bit_equal(read_hf(tmp_path / "again")[1], params)


def test_the_type_is_kept_per_tensor_unless_another_is_asked_for(tmp_path):
    params = random_params(TIED, dtype=jnp.bfloat16)
    save_hf(tmp_path / "out", TIED, params, dtype="bfloat16")
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"] = stored["model.norm.weight"].astype(np.float32)
    save_file(stored, file)
    _, read = read_hf(tmp_path / "out")
    assert read["final_norm"]["scale"].dtype == jnp.float32
    assert read["embed"]["embedding"].dtype == jnp.bfloat16
    save_hf(tmp_path / "again", TIED, read)
    assert_bit_equal(read_hf(tmp_path / "again")[1], read)
    assert '"dtype": "bfloat16"' in (tmp_path / "again" / "config.json").read_text()
    _, cast = read_hf(tmp_path / "out", dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype(jnp.float32)}


def test_a_type_that_no_folder_holds_is_refused_by_name(tmp_path):
    params = random_params(TIED, dtype=jnp.float8_e4m3fn)
    with pytest.raises(ValueError, match="type: final_norm/scale is float8_e4m3fn; written are"):
        save_hf(tmp_path / "out", TIED, params)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extended
@pytest.mark.parametrize("mesh_config", [MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=8)])
def test_parameters_are_read_to_where_they_live(tmp_path, mesh_config):
    params = random_params(HYPENET)
    save_hf(tmp_path / "out", HYPENET, params, dtype="float32", max_shard_bytes=9_000)
    mesh = make_mesh(mesh_config)
    names = flatten(logical_axes(Decoder(HYPENET, jnp.dtype(jnp.float32), scan=False)))

    def place(path, shape):
        return sharding_of(names[path], shape, mesh, path)

    _, read = read_hf(tmp_path / "out", mesh=mesh)
    for path, leaf in flatten(read).items():
        assert leaf.sharding.is_equivalent_to(place(path, leaf.shape), leaf.ndim), path
    assert_bit_equal(read, params)
    assert read["layer_1"]["mixer"]["q"]["kernel"].addressable_shards[0].data.size < 24 * 32


def test_sharded_parameters_are_written_whole(tmp_path):
    params = random_params(TIED)
    mesh = make_mesh(MeshConfig(fsdp=8))
    spread = jax.device_put(
        params["embed"], jax.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    )
    save_hf(tmp_path / "out", TIED, {**params, "embed": spread}, dtype="float32")
    assert_bit_equal(read_hf(tmp_path / "out")[1], params)


def test_a_loaded_model_runs_in_its_own_type(tmp_path):
    save_hf(tmp_path / "out", TIED, random_params(TIED), dtype="float32")
    decoder, params = load_hf(tmp_path / "out")
    assert (decoder.config, decoder.dtype, decoder.scan) == (TIED, jnp.float32, False)
    tokens = jnp.zeros((1, 6), jnp.int32)
    hidden = jax.eval_shape(lambda: decoder.apply({"params": params}, tokens).hidden)
    assert (hidden.shape, hidden.dtype) == ((1, 6, 24), jnp.float32)


def test_a_head_that_repeats_the_tied_embedding_is_left_out(tmp_path):
    params = random_params(TIED)
    save_hf(tmp_path / "out", TIED, params, dtype="float32")
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    save_file({**stored, HEAD: stored[EMBEDDING].copy()}, file)
    assert_bit_equal(read_hf(tmp_path / "out")[1], params)


def test_a_head_that_differs_from_the_tied_embedding_is_refused(tmp_path):
    save_hf(tmp_path / "out", TIED, random_params(TIED), dtype="float32")
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    save_file({**stored, HEAD: stored[EMBEDDING] + 1e-3}, file)
    with pytest.raises(CheckpointError, match="tie_word_embeddings is true but lm_head"):
        read_hf(tmp_path / "out")
