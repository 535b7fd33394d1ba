import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from hypenet_jax import axes
from hypenet_jax.sharding import (
    AXIS_RULES,
    MeshConfig,
    ShardingError,
    constrain,
    make_mesh,
    mesh_axes,
    on_mesh,
    place_batch,
    replicated,
    row_parts,
    sharding_of,
    shardings_of,
)


def paper_mesh(data=1, fsdp=1, sequence=1, tensor=1):
    return AbstractMesh((data, fsdp, sequence, tensor), ("data", "fsdp", "sequence", "tensor"))


def test_every_logical_name_of_the_glossary_has_a_rule():
    names = {
        value for name, value in vars(axes).items() if name.isupper() and isinstance(value, str)
    }
    assert names == set(AXIS_RULES)


def test_one_axis_takes_the_devices_the_others_leave():
    assert MeshConfig(data=2, fsdp=-1, tensor=2).sizes(8) == (2, 2, 1, 2)
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, sequence=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 2, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_a_mesh_may_use_some_of_the_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).size == 2


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(fsdp=4), MeshConfig(tensor=3)])
def test_sizes_that_do_not_fill_the_devices_are_refused_with_both_counts(config):
    with pytest.raises(ShardingError, match="there are 8"):
        make_mesh(config)


@pytest.mark.parametrize("sizes", [{"data": 0}, {"data": -1, "fsdp": -1}, {"tensor": -2}])
def test_senseless_sizes_are_refused(sizes):
    with pytest.raises(ShardingError, match="at most one of them -1"):
        MeshConfig(**sizes)


def test_query_weights_of_the_9b_split_over_fsdp_and_tensor():
    shape = (4096, 32, 128)
    where = sharding_of(("embed", "heads", "head_dim"), shape, paper_mesh(fsdp=4, tensor=8))
    assert where.spec == PartitionSpec("fsdp", "tensor", None)
    assert where.shard_shape(shape) == (1024, 4, 128)


def test_rows_split_over_data_and_fsdp():
    where = sharding_of(("batch", "time"), (32, 64), paper_mesh(data=2, fsdp=4, sequence=2))
    assert where.shard_shape((32, 64)) == (4, 32)


def test_one_mesh_axis_asked_twice_is_refused_naming_both():
    with pytest.raises(ShardingError) as error:
        sharding_of(("heads", "mlp"), (8, 8), paper_mesh(tensor=2), "layer_0/odd/kernel")
    for part in ("layer_0/odd/kernel", "'heads'", "'mlp'", "'tensor'"):
        assert part in str(error.value)


def test_too_few_kv_heads_for_the_tensor_axis_says_which_sizes_work():
    shapes = {"layer_0": {"k": {"kernel": jax.ShapeDtypeStruct((64, 8, 16), jnp.float32)}}}
    names = {"layer_0": {"k": {"kernel": ("embed", "kv_heads", "head_dim")}}}
    with pytest.raises(ShardingError) as error:
        shardings_of(shapes, names, paper_mesh(tensor=16))
    assert "layer_0/k/kernel: dimension 1 ('kv_heads') of size 8 does not" in str(error.value)
    assert "mesh axis tensor of size 16" in str(error.value)
    assert "sizes of that axis that work: 1, 2, 4, 8" in str(error.value)


@pytest.mark.parametrize("names", [("embed",), ("embed", "nonsense")])
def test_wrong_names_are_refused(names):
    with pytest.raises(ShardingError, match="array: "):
        sharding_of(names, (4, 4), paper_mesh())


def test_shardings_of_takes_partition_specs_of_names_too():
    shapes = {"a": jnp.zeros((8, 4)), "b": jnp.zeros((4,))}
    names = {"a": PartitionSpec("embed", "mlp"), "b": ("norm",)}
    found = shardings_of(shapes, names, paper_mesh(fsdp=2, tensor=2))
    assert found["a"].spec == PartitionSpec("fsdp", "tensor")
    assert found["b"].is_fully_replicated


def test_constrain_without_a_mesh_is_the_array_itself():
    x = jnp.ones((2, 3))
    assert constrain(x, ("batch", "time")) is x


def test_constrain_lays_out_activations_and_leaves_what_does_not_divide_free():
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, sequence=2))
    with on_mesh(mesh):
        laid = jax.jit(lambda x: constrain(x, ("batch", "time", "hidden")))(jnp.ones((8, 4, 3)))
        odd = jax.jit(lambda x: constrain(x, ("batch", "time", "hidden")))(jnp.ones((1, 4, 3)))
    assert laid.sharding.shard_shape(laid.shape) == (2, 2, 3)
    assert odd.sharding.shard_shape(odd.shape) == (1, 2, 3)


def test_constrain_inside_shard_map_is_the_array_itself():
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    spec = PartitionSpec("data")
    inside = jax.shard_map(
        lambda x: constrain(x, ("batch", "time")) * 2, mesh=mesh, in_specs=spec, out_specs=spec
    )
    with on_mesh(mesh):
        assert np.array_equal(jax.jit(inside)(jnp.ones((8, 4))), jnp.full((8, 4), 2.0))


def test_mesh_axes_are_those_of_the_table_with_a_mesh_and_none_without():
    assert mesh_axes("heads", 3) == ()
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        assert mesh_axes("batch", 8) == ("data", "fsdp")
        assert mesh_axes("heads", 4) == ("tensor",)
        assert mesh_axes("batch", 6) == ()  # a hint: these rows stay whole
        assert mesh_axes("vocab", 7) == ()
    with on_mesh(jax.make_mesh((2, 2), ("tensor", "other"), axis_types=(AxisType.Auto,) * 2)):
        assert mesh_axes("batch", 8) == mesh_axes("embed", 8) == ("other",)
        assert mesh_axes("heads", 8) == ("tensor",)


@pytest.mark.parametrize("name", ["heads", "kv_heads", "mlp"])
def test_an_activation_that_does_not_divide_is_refused_naming_both(name):
    with on_mesh(make_mesh(MeshConfig(fsdp=2, tensor=4))), pytest.raises(ShardingError) as error:
        mesh_axes(name, 6)
    assert f"({name!r}) of size 6 does not divide over mesh axis tensor of size 4" in str(
        error.value
    )


def test_a_sequence_that_does_not_divide_is_refused_naming_both():
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=4))
    with pytest.raises(ShardingError, match=r"'time'.* of size 6 .*mesh axis sequence of size 4"):
        place_batch({"tokens": np.zeros((2, 6), np.int32)}, mesh)


def test_a_placed_batch_holds_the_same_rows_cut_over_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2))
    rows = np.arange(32).reshape(8, 4)
    placed = place_batch({"tokens": rows}, mesh)["tokens"]
    assert np.array_equal(placed, rows)
    assert placed.sharding.shard_shape(placed.shape) == (2, 2)
    assert row_parts(mesh) == (0, 1)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ShardingError, match=r"batch\['tokens'\].*size 6.*multiple of 8"):
        place_batch({"tokens": np.zeros((6, 4), np.int32)}, make_mesh(MeshConfig()))


def test_replicated_puts_the_whole_array_everywhere():
    x = jax.device_put(jnp.arange(3), replicated(make_mesh(MeshConfig())))
    assert len(x.addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in x.addressable_shards)
