"""Every implementation of one token of lightning attention answers the same questions."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from meshes import on

from pallas_kernels import UnsupportedError, dispatch, lightning_step
from pallas_kernels.lightning_step import IMPLEMENTATIONS, HeadNorms, gpu

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = [
    pytest.mark.brief,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
EPS, SCALE = 1e-2, 0.3
CALL = "stablehlo.custom_call @__gpu$xla.gpu.triton("
CONSTANTS = ("log_decay", "angles")
FORMS = {"plain": "", "norms": "n", "rotation": "r", "both": "nr"}
every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
forms = pytest.mark.parametrize("form", list(FORMS.values()), ids=list(FORMS))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles side by side, the last one not full; interpreted."""
    monkeypatch.setattr(gpu, "COLUMNS", 8)
    with dispatch.interpreted():
        yield


def inputs(form="nr", rows=2, heads=3, width=20, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    arrays = {name: draw(rows, heads, width).astype(dtype) for name in "qkv"}
    arrays["log_decay"] = -jnp.abs(draw(heads))
    arrays["state"] = draw(rows, heads, width, width)
    scales, angles = (1 + 0.3 * draw(width) for _ in range(2)), 3 * draw(rows, width // 2)
    if "n" in form:
        arrays |= dict(zip(("q_scale", "k_scale"), scales, strict=True))
    return arrays | ({"angles": angles} if "r" in form else {})


def run(arrays, implementation, **marks):
    names = "q", "k", "v", "log_decay", "state"
    norms = None
    if "q_scale" in arrays:
        norms = HeadNorms(arrays["q_scale"], arrays["k_scale"], EPS)
    return lightning_step(
        *(arrays[name] for name in names),
        scale=SCALE,
        norms=norms,
        angles=arrays.get("angles"),
        implementation=implementation,
        **marks,
    )


def definition(arrays):
    def placed(x, scale):
        if scale is not None:
            x = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * scale[None, None]
        if "angles" in arrays:
            turn = jnp.exp(1j * arrays["angles"])[:, None]
            first, second = jnp.split(x, 2, axis=-1)
            turned = (first + 1j * second) * turn
            x = jnp.concatenate([turned.real, turned.imag], axis=-1)
        return x

    q, k = (placed(arrays[name], arrays.get(f"{name}_scale")) for name in "qk")
    decay = jnp.exp(arrays["log_decay"])[None, :, None, None]
    memory = decay * arrays["state"] + k[..., :, None] * arrays["v"][..., None, :]
    return SCALE * jnp.einsum("bnk,bnkv->bnv", q, memory), memory


@every
@forms
def test_outputs_and_gradients_match_float64(implementation, form):
    arrays = inputs(form)
    constants = {name: arrays[name] for name in CONSTANTS if name in arrays}
    names = [name for name in arrays if name not in CONSTANTS]

    def flat(function):
        return lambda *leaves: function(dict(zip(names, leaves, strict=True)) | constants)

    leaves = [arrays[name] for name in names]
    expected = oracles.value_and_gradients(flat(definition), *leaves)
    got = oracles.with_gradients(
        flat(functools.partial(run, implementation=implementation)), *leaves
    )
    for mine, theirs in zip(got, expected, strict=True):
        oracles.assert_close(mine, theirs, 2e-6)


@every
def test_decay_and_angles_are_constants(implementation):
    arrays = inputs()
    some = {name: arrays[name] for name in CONSTANTS}
    loss = lambda some: oracles.scalar(run(arrays | some, implementation))  # noqa: E731
    assert not any(np.any(x) for x in jax.tree.leaves(jax.grad(loss)(some)))


@every
def test_padding_neither_writes_nor_decays_and_gives_zeros(implementation):
    arrays, real = inputs(), jnp.asarray([True, False])
    expected, kept = run(arrays, implementation)
    noise = {name: arrays[name].at[1].set(jnp.nan) for name in "qkv"}
    got, memory = run(arrays | noise, implementation, real=real)
    np.testing.assert_array_equal(memory[1], arrays["state"][1])
    assert not np.any(got[1])
    oracles.assert_close((got[0], memory[0]), (expected[0], kept[0]), 1e-6)


@every
def test_what_is_forgotten_may_be_nan(implementation):
    arrays, reset = inputs(), jnp.asarray([True, False])
    empty = arrays | {"state": arrays["state"].at[0].set(0.0)}
    broken = arrays | {"state": arrays["state"].at[0].set(jnp.nan)}
    got = run(broken, implementation, reset=reset)
    oracles.assert_close(got, run(empty, implementation), 1e-6)


@every
def test_a_row_is_as_it_is_alone(implementation):
    arrays, marks = (
        inputs(),
        {"real": jnp.asarray([True, False]), "reset": jnp.asarray([False, True])},
    )
    whole = run(arrays, implementation, **marks)
    of_rows = set(arrays) - {"log_decay", "q_scale", "k_scale"}
    for b in (slice(0, 1), slice(1, 2)):
        row = {name: x[b] if name in of_rows else x for name, x in arrays.items()}
        alone = run(row, implementation, **{name: x[b] for name, x in marks.items()})
        oracles.assert_close(alone, [x[b] for x in whole], 1e-6)


@every
def test_tokens_one_after_the_other_are_a_sequence(implementation):
    """With padding, and a document that starts in the middle."""
    segments = np.asarray([[1, 1, 0, 1, 1, 1], [0, 3, 3, 4, 4, 0]], np.int32)
    reset = np.asarray([[0] * 6, [0, 0, 0, 1, 0, 0]], bool)
    one = inputs("")
    tokens = [np.random.default_rng(i).standard_normal((2, 6, 3, 20)) for i in range(3)]
    call = jax.jit(functools.partial(run, implementation=implementation))
    state, outputs = one["state"], []
    for t in range(6):
        token = {
            name: jnp.asarray(x[:, t], jnp.float32) for name, x in zip("qkv", tokens, strict=True)
        }
        marks = {"real": jnp.asarray(segments[:, t] != 0), "reset": jnp.asarray(reset[:, t])}
        out, state = call(one | token | {"state": state}, **marks)
        outputs.append(out)
    expected = oracles.recurrence(*tokens, one["state"], one["log_decay"], segments, SCALE)
    oracles.assert_close((jnp.stack(outputs, 1), state), expected, 2e-6)


@every
def test_bfloat16_loses_only_roundings(implementation):
    arrays = inputs(dtype=jnp.bfloat16)
    got = run(arrays, implementation)
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float32]
    expected = definition(jax.tree.map(lambda x: x.astype(jnp.float32), arrays))
    oracles.assert_close(got, expected, 8e-3)


@pytest.mark.parametrize(
    ("rows", "heads", "width"), [(1, 1, 2), (3, 2, 8), (1, 5, 66), (1, 1, 256)]
)
def test_any_size_equals_the_reference(rows, heads, width):
    arrays = inputs(rows=rows, heads=heads, width=width)
    oracles.assert_close(run(arrays, "gpu"), run(arrays, "reference"), 2e-6)


def test_a_width_without_halves_needs_no_angles():
    arrays = inputs("n", width=7)
    oracles.assert_close(run(arrays, "gpu"), run(arrays, "reference"), 2e-6)


def lowered(arrays, *place, marks=None, **axes):
    with dispatch._interpreting(False), on(*place, **axes):
        traced = jax.jit(lambda arrays, marks: run(arrays, None, **marks)).trace(
            arrays, marks or {}
        )
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@forms
@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_is_one_kernel_that_changes_the_memory_in_place(form, rows):
    marks = {"real": jnp.ones((rows,), bool), "reset": jnp.ones((rows,), bool)}
    text = lowered(inputs(form, rows, dtype=jnp.bfloat16), marks=marks)
    assert text.count(CALL) == 1
    (call,) = (line for line in text.splitlines() if CALL in line)
    assert "output_tuple_indices = [0], operand_index = 4" in call
    assert not any("stablehlo.pad" in line or "transpose" in line for line in text.splitlines())


def test_a_mesh_and_older_gpus_run_the_reference():
    assert CALL in lowered(inputs(), data=1)
    assert CALL not in lowered(inputs(), data=2)
    assert CALL not in lowered(inputs(), "Tesla V100-SXM2-16GB")


def test_what_the_kernel_cannot_run_is_refused_with_what_would():
    def refused(match, place=None, **changes):
        with place or contextlib.nullcontext(), pytest.raises(UnsupportedError, match=match):
            jax.eval_shape(lambda: run(inputs(**changes), "gpu"))

    with dispatch._interpreting(False):
        refused("needs a GPU, and this runs on cpu; use 'reference'")
        refused("needs a GPU of A100, .*, and this is Tesla", on("Tesla T4"))
        refused("takes heads up to 256 wide, and these are 258", width=258)
        refused("takes q, k, v all bfloat16 or all float32, not float16", dtype=jnp.float16)
        refused("the mesh has several devices; use", on(data=2))


def test_angles_that_are_not_half_the_width_are_refused():
    arrays = inputs()
    with pytest.raises(ValueError, match="has 9 angles for heads of 20; give half"):
        run(arrays | {"angles": arrays["angles"][:, :9]}, None)
