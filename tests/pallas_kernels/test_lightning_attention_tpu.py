"""What only the TPU kernels of lightning attention can get wrong; interpreted, or lowered without a
TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from test_lightning_attention import SCALE, decays, documents, inputs

from pallas_kernels import UnsupportedError, dispatch, lightning_attention
from pallas_kernels.lightning_attention import chunked, tpu
from pallas_kernels.lightning_attention.reference import Operands

pytestmark = pytest.mark.brief


def on_tpu(kind="TPU v5 lite", axes=()):
    sizes, names, kinds = zip(*axes, strict=True) if axes else ((), (), ())
    device = AbstractDevice(kind, 1, "tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh(sizes, names, kinds, abstract_device=device))


@functools.partial(jax.jit, static_argnames="precision")
def results(q, k, v, state, log_decay, segment_ids=None, precision="split"):
    """Outputs, last state, and the gradients of both in q, k, v and the first state."""

    def function(*arrays):
        q, k, v, state = arrays
        operands = Operands(q, k, v, log_decay, state, segment_ids)
        return tpu.tpu(operands, scale=SCALE, precision=precision)

    def loss(*arrays):
        return oracles.scalar([x.astype(jnp.float32) for x in function(*arrays)])

    with dispatch.interpreted():
        return *function(q, k, v, state), *jax.grad(loss, (0, 1, 2, 3))(q, k, v, state)


@functools.cache
def float64(packed, dtype):
    arrays = inputs(heads=2, dtype=dtype)
    segments = documents() if packed else None
    function = functools.partial(
        oracles.lightning, log_decay=decays(2), segment_ids=segments, scale=SCALE
    )
    out, gradients = oracles.value_and_gradients(function, *arrays)
    return *out, *gradients


def errors(packed, dtype=jnp.bfloat16, **mode):
    segments = documents() if packed else None
    got = results(*inputs(heads=2, dtype=dtype), decays(2), segments, **mode)
    return [oracles.relative_error(*pair) for pair in zip(got, float64(packed, dtype), strict=True)]


@pytest.mark.parametrize("packed", [False, True])
def test_the_split_loses_only_the_rounding_of_bfloat16_results(packed):
    out, last, *gradients = errors(packed)
    perfect = float64(packed, jnp.bfloat16)[0]
    rounding = oracles.relative_error(np.asarray(perfect, jnp.bfloat16), perfect)
    assert out <= 1.2 * rounding
    assert last <= oracles.TOLERANCE["float32"]
    assert max(gradients) <= 5e-3


def test_one_pass_costs_a_few_thousandths():
    assert all(5e-4 <= error <= 5e-3 for error in errors(False, precision="one_pass"))


def test_more_heads_than_fit_in_a_grid_step_match_the_chunked_form():
    heads = 34
    assert heads * tpu.INTERPRETED_CHUNK > tpu.STEP_ROWS
    q, k, v, state = inputs(batch=1, length=40, heads=heads, width=8)
    operands = Operands(q, k, v, decays(heads), state, None)
    with dispatch.interpreted():
        got = jax.jit(functools.partial(tpu.tpu, scale=SCALE))(operands)
    expected = jax.jit(functools.partial(chunked.chunked, scale=SCALE))(operands)
    oracles.assert_close(got, expected, 5e-6)


def kernels(length=16384, heads=16, width=128, dtype=jnp.bfloat16, packed=False):
    """Names of the kernels in the program of the gradient, lowered for a TPU."""
    tokens = jax.ShapeDtypeStruct((1, length, heads, width), dtype)
    state = jax.ShapeDtypeStruct((1, heads, width, width), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32) if packed else None

    def loss(q, k, v, state, segments):
        operands = Operands(q, k, v, decays(heads), state, segments)
        out, last = tpu.tpu(operands, scale=SCALE)
        return jnp.sum(out, dtype=jnp.float32) + jnp.sum(last)

    # With the value: newer JAX leaves out a forward kernel whose results nothing reads.
    both = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
    traced = both.trace(tokens, tokens, tokens, state, segments)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call")


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_forward_and_backward_lower_for_every_generation(kind):
    with on_tpu(kind):
        assert kernels() == 2
        assert kernels(length=1000, heads=5, packed=True) == 2
        assert kernels(dtype=jnp.float32) == 2


def test_what_a_tpu_cannot_run_is_refused_with_what_would():
    def run(width=128):
        q, k, v, state = inputs(length=4, width=width)
        return jax.eval_shape(
            lambda: lightning_attention(q, k, v, decays(), state, scale=SCALE, implementation="tpu")
        )

    with pytest.raises(UnsupportedError, match=r"needs a TPU, and this runs on cpu; use 'chunked'"):
        run()
    with on_tpu(), pytest.raises(UnsupportedError, match="multiple of 128, and it is 64; use"):
        run(width=64)
    axes = [(2, "x", jax.sharding.AxisType.Auto)]
    with on_tpu(axes=axes), pytest.raises(UnsupportedError, match="the mesh has several devices"):
        run()
    with on_tpu(axes=[(1, "x", jax.sharding.AxisType.Auto)]):
        run()


@pytest.mark.parametrize(
    ("length", "width", "name"), [(64, 128, "tpu"), (64, 64, "chunked"), (1, 128, "recurrent")]
)
def test_on_a_tpu_the_kernel_is_chosen_where_it_can_run(length, width, name, caplog):
    dispatch._log_choice.cache_clear()
    q, k, v, state = inputs(length=length, width=width)
    with on_tpu(), caplog.at_level("INFO", logger="pallas_kernels.dispatch"):
        jax.eval_shape(lambda: lightning_attention(q, k, v, decays(), state, scale=SCALE))
    assert caplog.messages == [f"lightning_attention runs {name!r} on tpu"]
