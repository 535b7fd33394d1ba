"""Every implementation of projections answers the same questions."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import on

from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.projection import IMPLEMENTATIONS, Norm, gpu, projection
from pallas_kernels.projection.reference import Activation, Operands

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = [
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
EPS = 1e-2
CALL = "stablehlo.custom_call @__gpu$xla.gpu.triton("
FORMS = {"plain": "", "norm": "n", "gate and residual": "gr", "all": "ngr"}
every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
forms = pytest.mark.parametrize("form", list(FORMS.values()), ids=list(FORMS))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles below each other, the last one not full; interpreted."""
    monkeypatch.setattr(gpu, "TILE_BYTES", 32 * gpu.COLUMNS * 4)
    with dispatch.interpreted():
        yield


def inputs(form="ngr", depth=75, width=24, dtype=jnp.float32, rows=1, time=1):
    """x, two kernels as wide as the residual, and one of another width where there is none."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    x, gate, residual = (draw(rows, time, size) for size in (depth, depth, width))
    kernels = draw(depth, width), draw(depth, width), draw(depth, 5)
    scale = jnp.asarray(rng.uniform(0.5, 2, depth), jnp.float32)
    return {
        "x": x,
        "kernels": kernels[:2] if "r" in form else kernels,
        "scale": scale if "n" in form else None,
        "gate": gate if "g" in form else None,
        "residual": residual if "r" in form else None,
    }


def run(arrays, implementation, activation: Activation = "silu"):
    scale = arrays["scale"]
    return projection(
        arrays["x"],
        arrays["kernels"],
        norm=None if scale is None else Norm(scale, EPS),
        gate=arrays["gate"],
        activation=activation,
        residual=arrays["residual"],
        implementation=implementation,
    )


def definition(arrays, activation="silu"):
    x, gate, residual = arrays["x"], arrays["gate"], arrays["residual"]
    if arrays["scale"] is not None:
        x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * arrays["scale"][None, None]
    if gate is not None:
        x = x / (1 + jnp.exp(-gate)) * (gate if activation == "silu" else 1)
    rest = 0 if residual is None else residual
    return tuple(jnp.einsum("bti,io->bto", x, kernel) + rest for kernel in arrays["kernels"])


@every
@forms
def test_outputs_and_gradients_match_float64(implementation, form):
    arrays = inputs(form)
    leaves, tree = jax.tree.flatten(arrays)

    def flat(function):
        return lambda *leaves: function(jax.tree.unflatten(tree, leaves))

    expected = oracles.value_and_gradients(flat(definition), *leaves)
    got = oracles.with_gradients(
        flat(functools.partial(run, implementation=implementation)), *leaves
    )
    for mine, theirs in zip(got, expected, strict=True):
        oracles.assert_close(mine, theirs, 2e-6)


@every
def test_a_gate_may_be_a_sigmoid(implementation):
    got = run(inputs(), implementation, "sigmoid")
    oracles.assert_close(got, definition(inputs(), "sigmoid"), 2e-6)


@every
def test_bfloat16_loses_only_roundings(implementation):
    arrays = inputs(dtype=jnp.bfloat16)
    got = run(arrays, implementation)
    assert {y.dtype for y in got} == {jnp.dtype(jnp.bfloat16)}
    expected = definition(jax.tree.map(lambda x: x.astype(jnp.float32), arrays))
    oracles.assert_close(got, expected, 8e-3)


@every
@forms
def test_tokens_together_are_as_each_alone(implementation, form):
    arrays = inputs(form, rows=3, time=5)
    shared = ("kernels", "scale")
    together = run(arrays, implementation)
    for b, t in ((0, 0), (1, 4), (2, 2)):
        alone = {
            name: x if name in shared or x is None else x[b : b + 1, t : t + 1]
            for name, x in arrays.items()
        }
        mine = tuple(y[b : b + 1, t : t + 1] for y in together)
        oracles.assert_close(mine, run(alone, implementation), 2e-6)


@every
def test_wider_matrices_are_rounded_to_the_type_of_x(implementation):
    arrays = inputs(dtype=jnp.bfloat16)
    wide = inputs()["kernels"]
    got = run({**arrays, "kernels": wide}, implementation)
    narrow = tuple(kernel.astype(jnp.bfloat16) for kernel in wide)
    oracles.assert_close(got, run({**arrays, "kernels": narrow}, implementation), 0)


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (32, 16), (33, 17), (200, 130)])
def test_any_size_equals_the_reference(depth, width):
    arrays = inputs(depth=depth, width=width)
    oracles.assert_close(run(arrays, "gpu"), run(arrays, "reference"), 2e-6)


@pytest.mark.parametrize(
    ("depth", "widths"),
    [
        (2048, (2048,) * 4),
        (2048, (2048,)),
        (2048, (6144,) * 2),
        (6144, (2048,)),
        (4096, (4096,) * 4),
    ],
)
def test_published_models_give_every_multiprocessor_as_much_to_read(depth, widths, monkeypatch):
    monkeypatch.undo()
    kernels = tuple(jax.ShapeDtypeStruct((depth, width), jnp.bfloat16) for width in widths)
    x = jax.ShapeDtypeStruct((1, 1, depth), jnp.bfloat16)
    plan = gpu._plan(Operands(x, kernels, None, None, None), 0.0, "silu")
    assert plan.rows * gpu.COLUMNS * 2 == gpu.TILE_BYTES
    across = sum(map(gpu._blocks, kernels))
    busiest = plan.tiles * -(-across * plan.splits // gpu.MULTIPROCESSORS)
    assert 0.95 < across * depth / plan.rows / (busiest * gpu.MULTIPROCESSORS) <= 1


@pytest.mark.parametrize(("down", "splits"), [(8, 1), (40, 4), (40, 1)])
def test_blocks_below_each_other_and_alone_add_up_to_the_same(down, splits, monkeypatch):
    monkeypatch.setattr(gpu, "_tiles_each", lambda across, tiles: -(-tiles // splits))
    arrays = inputs("n", depth=32 * down - 7)
    oracles.assert_close(run(arrays, "gpu"), run(arrays, "reference"), 2e-6)


def lowered(arrays, *place, **axes):
    with dispatch._interpreting(False), on(*place, **axes):
        traced = jax.jit(lambda arrays: run(arrays, None)).trace(arrays)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@forms
@pytest.mark.parametrize("rows", [1, 4])
def test_a_few_tokens_are_one_kernel_without_copies(form, rows):
    text = lowered(inputs(form, depth=96, width=40, dtype=jnp.bfloat16, rows=rows))
    assert text.count(CALL) == 1
    assert not any("stablehlo.pad" in line or "transpose" in line for line in text.splitlines())


def test_many_tokens_a_mesh_and_older_gpus_run_the_reference():
    assert CALL in lowered(inputs(rows=16), data=1)
    assert CALL not in lowered(inputs(rows=17))
    assert CALL not in lowered(inputs(), data=2)
    assert CALL not in lowered(inputs(), "Tesla V100-SXM2-16GB")


def test_what_the_kernel_cannot_run_is_refused_with_what_would():
    def refused(match, place=None, **changes):
        with place or contextlib.nullcontext(), pytest.raises(UnsupportedError, match=match):
            jax.eval_shape(lambda: run(inputs(**changes), "gpu"))

    with dispatch._interpreting(False):
        refused("needs a GPU, and this runs on cpu; use 'reference'")
        refused("needs a GPU of A100, .*, and this is Tesla", on("Tesla T4"))
        refused("takes up to 16 tokens, and x has 3 rows of 6", rows=3, time=6)
        refused("takes bfloat16 or float32, and x is float16", dtype=jnp.float16)
        refused("the mesh has several devices; use", on(data=2))
