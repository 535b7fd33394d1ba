import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_toy import AXES, bits, init

from hypenet_jax.sharding import MeshConfig, make_mesh, shardings_of
from hypenet_jax.train.checkpoint import Provenance
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.stage_output import load_params, read_stage_output, save_params

# A read that fails leaves dropped coroutines in the library that reads; they are collected here.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

ORIGIN = Provenance("align", {"width": 8}, parent="teacher")


@pytest.fixture
def params():
    tree = init(jax.random.key(0))
    return {**tree, "held": {"kernel": tree["held"]["kernel"].astype(jnp.bfloat16)}}


def test_weights_come_back_bit_for_bit_with_their_origin(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    loaded, metadata = load_params(tmp_path / "final", "align", like=params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert bits(loaded) == bits(params)
    assert loaded["held"]["kernel"].dtype == jnp.bfloat16
    assert {name: metadata[name] for name in ("stage", "parent", "config")} == {
        "stage": "align",
        "parent": "teacher",
        "config": {"width": 8},
    }
    assert metadata == read_stage_output(tmp_path / "final", "align")


@pytest.mark.extended
def test_weights_load_onto_a_mesh(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    mesh = make_mesh(MeshConfig(fsdp=8))
    where = shardings_of(params, AXES, mesh)
    loaded, _ = load_params(tmp_path / "final", "align", like=jax.device_put(params, where))
    assert bits(loaded) == bits(params)
    assert jax.tree.map(lambda x: x.sharding, loaded) == where


def test_weights_of_another_stage_are_refused(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    with pytest.raises(CheckpointError, match=r"written by stage 'align', expected .* 'distill'"):
        read_stage_output(tmp_path / "final", "distill")
    with pytest.raises(CheckpointError, match="written by stage 'align'"):
        load_params(tmp_path / "final", "distill")


def test_missing_weights_say_which_stage_to_run(tmp_path):
    with pytest.raises(CheckpointError, match="run stage 'align' first"):
        read_stage_output(tmp_path / "final", "align")


def test_other_shapes_are_refused_by_path(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    wanted = {**params, "norm": {"scale": np.ones((9,), np.float32)}}
    with pytest.raises(CheckpointError, match=r"norm/scale: float32\[8\] saved, float32\[9\] now"):
        load_params(tmp_path / "final", "align", like=wanted)


@pytest.mark.extended
def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    data = [path for path in (tmp_path / "final").rglob("d/*") if path.is_file()]
    path = max(data, key=lambda path: path.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(CorruptCheckpoint, match="final"):
        load_params(tmp_path / "final", "align")


def test_changed_metadata_is_noticed(tmp_path, params):
    save_params(tmp_path / "final", params, ORIGIN)
    path = tmp_path / "final" / "metadata" / "metadata"
    path.write_text(path.read_text().replace('"teacher"', '"nobody"'))
    with pytest.raises(CorruptCheckpoint, match="metadata changed"):
        read_stage_output(tmp_path / "final", "align")


def test_the_fingerprint_of_weights_changes_with_any_of_them(tmp_path, params):
    def fingerprint(scale):
        save_params(tmp_path, {**params, "norm": {"scale": jnp.full((8,), scale)}}, ORIGIN)
        return read_stage_output(tmp_path, "align")["fingerprint"]

    assert fingerprint(1.0) == fingerprint(1.0) != fingerprint(1.001)
