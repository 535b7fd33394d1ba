"""load_hf on whatever mesh `jax.make_mesh` gives: the numbers are those of one device, padding and all."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_models import QWEN3

from hypenet_jax import Decoder, generate, hypenet, init_params, load_hf, save_hf
from hypenet_jax.generation.model import model_fingerprint
from hypenet_jax.losses import next_token
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import ShardingError, on_mesh
from hypenet_jax.testing import random_params
from hypenet_jax.weights import read_hf
from hypenet_jax.weights.names import flatten

pytestmark = [pytest.mark.extended, pytest.mark.brief]

ODD = hypenet(dataclasses.replace(QWEN3, vocab_size=41, mixers=QWEN3.mixers[:2]), (0,))
TOKENS = np.random.default_rng(0).integers(0, ODD.vocab_size, (8, 16), dtype=np.int32)
EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
MESHES = {  # sizes, names and kinds of axes
    "names of its own": ((2, 2, 2), ("x", "y", "tensor"), None),
    "mixed": ((4, 2), ("fsdp", "tensor"), (EXPLICIT, AUTO)),
    "no tensor": ((8,), ("model",), None),
    "automatic": ((2, 2), ("data", "tensor"), (AUTO, AUTO)),
}
CUT = {  # of the embedding, "V D"
    "names of its own": PartitionSpec("tensor", ("x", "y")),
    "mixed": PartitionSpec("tensor", "fsdp"),
    "no tensor": PartitionSpec(None, "model"),
    "automatic": PartitionSpec("tensor", None),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("any_mesh") / "odd"
    save_hf(path, ODD, random_params(ODD))
    return path


@functools.partial(jax.jit, static_argnums=1)
def logits_and_gradient(params, decoder, tokens):
    def loss(params):
        hidden = decoder.apply({"params": params}, tokens).hidden
        logits = decoder.apply({"params": params}, hidden, method="logits")
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 3]), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradient


@pytest.fixture(scope="module")
def expected(folder):
    decoder, params = load_hf(folder)
    return logits_and_gradient(params, decoder, TOKENS)


def mesh_of(name):
    sizes, names, kinds = MESHES[name]
    return jax.make_mesh(sizes, names, axis_types=kinds)


@pytest.mark.parametrize("name", MESHES)
def test_axes_mean_what_they_are_called_and_padding_is_not_saved(folder, name, tmp_path):
    mesh = mesh_of(name)
    decoder, params = load_hf(folder, mesh=mesh)
    table = params["embed"]["embedding"]
    assert table.sharding.mesh == mesh
    assert table.sharding.is_equivalent_to(NamedSharding(mesh, CUT[name]), 2)
    save_hf(tmp_path / "again", decoder.config, params)
    jax.tree.map(
        np.testing.assert_array_equal, *(read_hf(f)[1] for f in (tmp_path / "again", folder))
    )


@pytest.mark.parametrize(("name", "is_set"), [("names of its own", True), ("mixed", False)])
def test_logits_and_gradients_are_those_of_one_device(folder, expected, name, is_set):
    mesh = mesh_of(name)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        decoder, params = load_hf(folder, mesh=mesh)
        logits, gradient = logits_and_gradient(params, decoder, TOKENS)
    np.testing.assert_allclose(logits, expected[0], atol=2e-5)
    assert logits.shape == (*TOKENS.shape, ODD.vocab_size)
    of = flatten(params)
    for path, leaf in flatten(gradient).items():
        assert jax.typeof(leaf) == jax.typeof(of[path]), path  # as it lies, so an optimizer adds
        wanted, leaf = np.asarray(flatten(expected[1])[path]), np.asarray(leaf)
        np.testing.assert_allclose(leaf[: len(wanted)], wanted, atol=2e-6, err_msg=path)
        assert not leaf[len(wanted) :].any()


def test_written_tokens_are_those_of_one_device(folder):
    mesh, written = jax.make_mesh((4, 2), ("data", "tensor")), TOKENS.copy()
    written[:, 5:8] = generate(*load_hf(folder, mesh=mesh), written[:, :5], max_new_tokens=3)
    decoder, params = load_hf(folder)
    logits, _ = logits_and_gradient(params, decoder, written)
    np.testing.assert_array_equal(np.argmax(logits[:, 4:7], axis=-1), written[:, 5:8])


def test_padding_is_no_part_of_losses_and_of_what_tells_models_apart(folder):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AUTO, AUTO))
    losses, prints, weights = [], [], jnp.ones(TOKENS.shape)
    for one in (None, mesh):
        decoder, params = load_hf(folder, mesh=one)
        hidden = jnp.tile(params["embed"]["embedding"][:8, None], (1, 16, 1))
        with on_mesh(one):
            loss = jax.jit(lambda p, *given: next_token(given[0], output_head(p, ODD), *given[1:]))
            losses.append(np.asarray(loss(params, hidden, jnp.asarray(TOKENS), weights).total))
        prints.append(model_fingerprint(decoder, params))
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert prints[0] == prints[1]


def test_fresh_parameters_have_the_same_numbers_and_padding_of_zeros():
    config = dataclasses.replace(ODD, mixers=())
    decoder = Decoder(config, jnp.float32, scan=False)
    padded, plain = (
        flatten(init_params(decoder.clone(vocab_multiple=n), jax.random.key(0))) for n in (4, 1)
    )
    for path, leaf in plain.items():
        np.testing.assert_array_equal(padded[path][: len(leaf)], leaf)
        assert not padded[path][len(leaf) :].any()
    assert len(padded["head/kernel"]) == len(padded["embed/embedding"]) == 44


def test_rows_that_hold_something_are_no_padding(folder, tmp_path):
    params = load_hf(folder, mesh=jax.make_mesh((2,), ("tensor",)))[1]
    head = params["head"]["kernel"]
    params = {**params, "head": {"kernel": np.asarray(head) + 1}}
    with pytest.raises(ValueError, match=r"head/kernel has 42 rows.* vocabulary of 41"):
        save_hf(tmp_path / "out", ODD, params)
    assert list(tmp_path.iterdir()) == []


def test_heads_that_do_not_divide_and_training_are_refused_by_name(folder):
    with pytest.raises(ShardingError, match=r"'mlp'.*mesh axis tensor of size 8; .*that work: 1"):
        load_hf(folder, mesh=jax.make_mesh((8,), ("tensor",)))
    with pytest.raises(ShardingError, match=r"'vocab'.*of size 41"):
        read_hf(folder, mesh=jax.make_mesh((2,), ("tensor",)))
