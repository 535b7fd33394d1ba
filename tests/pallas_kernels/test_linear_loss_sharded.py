"""The losses on a mesh are the losses, and what they exchange does not grow with the vocabulary."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels import (
    MeshAxes,
    UnsupportedError,
    dispatch,
    linear_cross_entropy,
    linear_distillation,
    linear_kl,
    linear_kl_top_k,
)
from pallas_kernels.linear_loss import chunked

pytestmark = pytest.mark.brief

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY, K, CHUNK = 77, 24, 12, 96, 5, 16


def divergence_and_cross_entropy(hidden, head, teacher, teacher_head, labels, weights, **options):
    both = jnp.stack([weights, 0.5 * weights], axis=-1)
    options |= {"divergence": "jensen_shannon"}
    return linear_distillation(hidden, head, teacher, teacher_head, labels, both, **options)


LOSSES = {
    "cross entropy": linear_cross_entropy,
    "kl": linear_kl,
    "top-k kl": linear_kl_top_k,
    "both": divergence_and_cross_entropy,
}
every_loss = pytest.mark.parametrize("loss", ["cross entropy", "kl", "top-k kl"])
EXCHANGED = {"cross entropy": 3, "kl": 5, "top-k kl": 5, "both": 12}  # numbers per token
CASES = ((1, 8, 80), (2, 4, TOKENS), (8, 1, 80))  # parts, rows, tokens
cut = {"mesh_axes": MeshAxes(batch=("parts",), vocabulary=("rows",))}


@pytest.fixture(autouse=True)
def any_number_of_tokens(monkeypatch):
    monkeypatch.setattr(chunked, "LEAST_TOKENS", 8)


def mesh_of(parts, rows):
    kinds = (AxisType.Auto,) * 2
    return jax.make_mesh(
        (parts, rows), ("parts", "rows"), axis_types=kinds, devices=jax.devices()[: parts * rows]
    )


def arrays_of(loss, tokens=TOKENS, vocabulary=VOCABULARY):
    """Hidden, head, weights, and what the student should say."""
    rng = np.random.default_rng(0)
    hidden, teacher = (
        jnp.asarray(rng.standard_normal((tokens, width)), jnp.float32)
        for width in (WIDTH, TEACHER_WIDTH)
    )
    head, teacher_head = (
        jnp.asarray(0.5 * rng.standard_normal((vocabulary, width)), jnp.float32)
        for width in (WIDTH, TEACHER_WIDTH)
    )
    weights = jnp.asarray(np.where(rng.random(tokens) < 0.3, 0.0, rng.random(tokens)), jnp.float32)
    if loss == "cross entropy":
        target = (jnp.asarray(rng.integers(0, vocabulary, tokens)),)
    elif loss == "kl":
        target = teacher, teacher_head
    elif loss == "both":
        target = teacher, teacher_head, jnp.asarray(rng.integers(0, vocabulary, tokens))
    else:
        log_probs = jax.nn.log_softmax(teacher @ teacher_head.T, axis=-1)
        target = jax.lax.top_k(log_probs, K)
    return hidden, head, weights, tuple(target)


def placed(arrays, mesh):
    """Tokens and rows of the heads where they belong; tokens that do not divide, everywhere."""
    parts = mesh.shape["parts"]

    def place(x):
        rows = "rows" if x.shape[0] % VOCABULARY == 0 else None
        axis = rows or ("parts" if x.shape[0] % parts == 0 else None)
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree.map(place, arrays)


def total(loss, **options):
    temperature = {} if loss == "cross entropy" else {"temperature": 1.5}

    def function(hidden, head, weights, target):
        return LOSSES[loss](hidden, head, *target, weights, **temperature, **options)

    return function


def with_gradients(loss, **options):
    return jax.jit(jax.value_and_grad(total(loss, **options), (0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    ("loss", "parts", "rows", "tokens"),
    [
        *((loss, *case) for loss in ("cross entropy", "kl", "top-k kl") for case in CASES),
        ("both", 2, 4, TOKENS),
    ],
)
def test_value_and_gradients_are_the_unsharded_ones(loss, parts, rows, tokens, monkeypatch):
    arrays = arrays_of(loss, tokens)
    expected = with_gradients(loss)(*arrays)
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", CHUNK * 4 * VOCABULARY // rows)
    mesh = mesh_of(parts, rows)
    with jax.set_mesh(mesh):
        got = with_gradients(loss, **cut)(*placed(arrays, mesh))
        (alone, _) = jax.jit(total(loss, **cut))(*placed(arrays, mesh))
    oracles.assert_close(got, expected, 1e-5)
    oracles.assert_close(alone, expected[0][0], 1e-5)
    toward_head = got[1][1]
    assert toward_head.sharding.shard_shape(toward_head.shape) == (VOCABULARY // rows, WIDTH)


@pytest.mark.parametrize("loss", ["cross entropy", "kl"])
def test_the_kernels_of_each_device_give_the_unsharded_loss(loss):
    """24 rows of the vocabulary per device, where a tile of the kernels has 32."""
    arrays = arrays_of(loss)
    expected = with_gradients(loss)(*arrays)
    mesh = mesh_of(2, 4)
    with dispatch.interpreted(), jax.set_mesh(mesh):
        got = with_gradients(loss, implementation="tpu", **cut)(*placed(arrays, mesh))
        (alone, _) = jax.jit(total(loss, implementation="tpu", **cut))(*placed(arrays, mesh))
    oracles.assert_close(got, expected, 1e-5)
    oracles.assert_close(alone, expected[0][0], 1e-5)


def collectives(text):
    """What every collective of a compiled program gives back: (kind, numbers, is it in a loop)."""
    kinds = (
        "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    )
    found = []
    for computation in text.split("\n\n"):
        for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", computation):
            sizes = [
                math.prod(int(n) for n in shape.split(",") if n)
                for shape in re.findall(r"\w+\[([\d,]*)\]", result)
            ]
            found.append((kind, sum(sizes), "ENTRY" not in computation))
    return found


def program(loss, mesh, vocabulary, monkeypatch, gradients=True):
    """Compiled for this vocabulary in chunks of CHUNK tokens."""
    chunk_bytes = CHUNK * 4 * vocabulary // mesh.shape["rows"]
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", chunk_bytes)
    arrays = placed(arrays_of(loss, 2 * CHUNK * mesh.shape["parts"], vocabulary), mesh)
    with jax.set_mesh(mesh):
        function = with_gradients(loss, **cut) if gradients else jax.jit(total(loss, **cut))
        return function.lower(*arrays).compile().as_text()


@every_loss
def test_what_is_exchanged_does_not_grow_with_the_vocabulary(loss, monkeypatch):
    numbers = EXCHANGED[loss] * CHUNK
    for vocabulary in (VOCABULARY, 16 * VOCABULARY):
        for gradients in (False, True):
            text = program(loss, mesh_of(1, 8), vocabulary, monkeypatch, gradients)
            found = collectives(text)
            assert {kind for kind, _, _ in found} == {"all-reduce"}
            assert all(looped for _, _, looped in found)
            assert sum(size for _, size, _ in found) == numbers + gradients * CHUNK * WIDTH


def test_a_divergence_and_a_cross_entropy_exchange_the_numbers_of_both(monkeypatch):
    found = collectives(program("both", mesh_of(1, 8), VOCABULARY, monkeypatch))
    assert {kind for kind, _, _ in found} == {"all-reduce"}
    assert sum(size for _, size, _ in found) == EXCHANGED["both"] * CHUNK + CHUNK * WIDTH


@every_loss
def test_the_heads_gradient_is_summed_over_tokens_once(loss, monkeypatch):
    found = collectives(program(loss, mesh_of(2, 4), VOCABULARY, monkeypatch))
    total_and_head = 1 + VOCABULARY // 4 * WIDTH
    assert sum(size for _, size, looped in found if not looped) == total_and_head
    assert max(size for _, size, looped in found if looped) == CHUNK * WIDTH


@every_loss
def test_axes_mean_nothing_without_a_mesh_or_of_size_one(loss):
    arrays = arrays_of(loss)
    plain = jax.jit(total(loss)).lower(*arrays).as_text()
    assert jax.jit(total(loss, **cut)).lower(*arrays).as_text() == plain
    with jax.set_mesh(mesh_of(1, 1)):
        assert "manual" not in jax.jit(total(loss, **cut)).lower(*arrays).as_text()


@every_loss
def test_what_cannot_be_cut_is_refused(loss):
    hidden, head, weights, target = arrays_of(loss)
    odd = jax.tree.map(lambda x: x[:94] if len(x) == VOCABULARY else x, (head, target))
    with jax.set_mesh(mesh_of(2, 4)):
        with pytest.raises(
            UnsupportedError, match=r"vocabulary of 94 does not divide .* work: 1, 2"
        ):
            total(loss, **cut)(hidden, odd[0], weights, odd[1])
        with pytest.raises(UnsupportedError, match="no mesh axis 'x'; the mesh has parts, rows"):
            total(loss, mesh_axes=MeshAxes(vocabulary=("x",)))(hidden, head, weights, target)
        with pytest.raises(UnsupportedError, match="'rows' is named twice"):
            total(loss, mesh_axes=MeshAxes(batch=("rows",), vocabulary=("rows",)))(
                hidden, head, weights, target
            )
        with pytest.raises(UnsupportedError, match="'reference' cannot share its work"):
            total(loss, **cut, implementation="reference")(hidden, head, weights, target)
