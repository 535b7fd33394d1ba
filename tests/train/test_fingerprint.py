import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.fingerprint import differences, digest, leaf_shapes, leaf_specs
from hypenet_jax.sharding import MeshConfig, make_mesh, sharding_of
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.stage_output import check_leaves, verify

TREE = {
    "a": {"kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)},
    "half": np.ones((5,), jnp.bfloat16),
    "count": np.int32(7),
    "flag": np.array([True, False]),
}


def flipped(array: np.ndarray, bit: int) -> np.ndarray:
    raw = bytearray(array.tobytes())
    raw[bit // 8] ^= 1 << (bit % 8)
    return np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)


@pytest.mark.extended
def test_every_single_flipped_bit_changes_the_fingerprint():
    array = TREE["a"]["kernel"]
    before = leaf_specs({"x": array})["x"]["fingerprint"]
    for bit in range(8 * array.nbytes):
        assert leaf_specs({"x": flipped(array, bit)})["x"]["fingerprint"] != before


def test_exchanged_elements_change_the_fingerprint():
    array = TREE["a"]["kernel"]
    specs = leaf_specs({"x": array, "y": array[::-1].copy(), "z": array.swapaxes(0, 2).copy()})
    assert len({leaf["fingerprint"] for leaf in specs.values()}) == 3


@pytest.mark.extended
@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 4), (1, 2)])
def test_the_fingerprint_does_not_depend_on_the_mesh(fsdp, tensor):
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), jax.devices()[: fsdp * tensor])
    array = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    cut = jax.device_put(array, sharding_of(("embed", "mlp"), array.shape, mesh))
    assert leaf_specs({"x": cut}) == leaf_specs({"x": array})


def test_verify_names_the_leaves_that_changed():
    specs = leaf_specs(TREE)
    verify(TREE, specs, "here")
    changed = {**TREE, "count": np.int32(8)}
    with pytest.raises(
        CorruptCheckpoint, match=r"here: content of 1 of 4 leaves changed.*: count$"
    ):
        verify(changed, specs, "here")


def test_leaves_that_are_missing_extra_or_of_another_shape_or_dtype_are_refused_by_path():
    saved = leaf_specs(TREE)
    expected = leaf_shapes({**TREE, "half": np.ones((4,), np.float32), "new": np.ones(1)})
    del expected["flag"]
    with pytest.raises(CheckpointError) as error:
        check_leaves(saved, expected, "here")
    assert str(error.value) == (
        "here: does not fit: flag: bool[2] saved, nothing now; half: bfloat16[5] saved, float32[4] now; "
        "new: nothing saved, float64[1] now"
    )


def test_differences_name_a_dozen_and_count_the_rest():
    same = {"same": 1, "absent": None}
    assert not differences(same, {"same": 1})
    many = {f"key{i:02d}": i for i in range(15)}
    assert differences({**same, **many}, same).endswith("key11: 11 saved, nothing now; and 3 more")


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
