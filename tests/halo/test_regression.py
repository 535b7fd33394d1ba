"""Closed-form fits of output projections: numpy's least squares, the same on any mesh, refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.closed_form.regression import fit_kernel, relative_weights, token_sums
from hypenet_jax.sharding import MeshConfig, make_mesh, on_mesh
from hypenet_jax.train.errors import NumericsError

pytestmark = pytest.mark.brief

ALONE = make_mesh(MeshConfig(), jax.devices()[:1])
MIXED = make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))
INPUTS, OUTPUTS, RIDGE = 6, 3, 0.05
sums_of = jax.jit(token_sums)


@pytest.fixture(scope="module")
def batches():
    """Features, targets and weights of two batches; a third of the tokens are padding."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        weights = rng.uniform(0.5, 2, (4, 8)) * (rng.uniform(size=(4, 8)) > 0.3)
        arrays = rng.normal(size=(4, 8, INPUTS)), rng.normal(size=(4, 8, OUTPUTS)), weights
        made.append(tuple(x.astype(np.float32) for x in arrays))
    return made


@pytest.fixture(scope="module")
def kernel():
    """The one before: its inputs on two axes, as those of heads."""
    return np.random.default_rng(1).normal(size=(2, 3, OUTPUTS)).astype(np.float32)


def fitted(batches, kernel, mesh=ALONE, around="kernel"):
    with on_mesh(mesh):
        sums = [sums_of(*map(jnp.asarray, batch)) for batch in batches]
        options = {"mesh": mesh, "layer": 7, "sublayer": "mixer", "ridge": RIDGE}
        return fit_kernel(sums, jnp.asarray(kernel), around=around, **options)


@pytest.mark.parametrize("around", ["kernel", "zero"])
def test_the_kernel_is_numpys_least_squares_with_the_ridge_as_further_rows(batches, kernel, around):
    features, targets, weights = (
        np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts]).astype(np.float64)
        for parts in zip(*batches, strict=True)
    )
    before = kernel.reshape(INPUTS, OUTPUTS).astype(np.float64)
    start = before if around == "kernel" else np.zeros_like(before)
    root = np.sqrt(weights)[:, None]
    strength = RIDGE * np.mean(np.sum(np.square(root * features), axis=0))
    rows = np.vstack([root * features, np.sqrt(strength) * np.eye(INPUTS)])
    wanted = np.vstack([root * targets, np.sqrt(strength) * start])
    solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]

    found, values = fitted(batches, kernel, around=around)
    assert found.shape == kernel.shape
    np.testing.assert_allclose(found.reshape(INPUTS, OUTPUTS), solution, rtol=1e-4, atol=1e-5)
    for name, one in (("before", before), ("after", solution)):
        error = np.sum(np.square(root * (targets - features @ one)))
        error /= np.sum(np.square(root * targets))
        assert values[f"mixer/{name}"] == pytest.approx(error, rel=1e-4)
    assert (values["layer"], values["tokens"]) == (7, np.sum(weights > 0))


def test_what_stands_at_padding_changes_nothing(batches, kernel):
    changed = [
        (np.where(w[..., None] > 0, f, 9.0), np.where(w[..., None] > 0, r, -9.0), w)
        for f, r, w in batches
    ]
    assert np.array_equal(fitted(batches, kernel)[0], fitted(changed, kernel)[0])


@pytest.mark.extended
def test_eight_devices_fit_the_kernel_of_one(batches, kernel):
    (alone, errors), (shared, others) = (fitted(batches, kernel, m) for m in (ALONE, MIXED))
    np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)
    assert others == pytest.approx(errors, rel=1e-5)


@pytest.mark.extended
def test_the_sums_of_a_batch_are_added_over_no_devices(batches):
    with on_mesh(MIXED):
        text = sums_of.lower(*map(jnp.asarray, batches[0])).compile().as_text()
    assert "all-gather" in text  # the columns
    assert "all-reduce" not in text


def test_a_projection_without_tokens_is_refused_by_name(batches, kernel):
    empty = [(f, r, 0 * w) for f, r, w in batches]
    name = "layer 7, output projection of its mixer"
    with pytest.raises(NumericsError, match=rf"{name}: .* 6 features is singular with ridge 0\.05"):
        fitted(empty, kernel)


def test_sums_that_are_not_finite_are_refused_by_name(batches, kernel):
    spoiled = [(np.where(f > 2, np.inf, f), r, w) for f, r, w in batches]
    with pytest.raises(NumericsError, match=r"layer 7, .* not finite"):
        fitted(spoiled, kernel)


def test_tokens_weigh_by_the_size_of_their_stream():
    stream = jnp.stack([jnp.full((1, 4), 2.0), jnp.full((1, 4), 3.0), jnp.zeros((1, 4))])
    weights = relative_weights(stream, jnp.asarray([[1.0], [0.0], [0.0]]))
    np.testing.assert_allclose(weights, [[0.25], [0.0], [0.0]])
