"""What only the TPU kernels of the losses can get wrong; interpreted, or lowered without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from test_lightning_attention_tpu import on_tpu

from pallas_kernels import (
    MeshAxes,
    UnsupportedError,
    dispatch,
    linear_cross_entropy,
    linear_kl,
)
from pallas_kernels.linear_loss import tpu_kernels
from pallas_kernels.linear_loss.reference import Settings
from pallas_kernels.linear_loss.tpu_losses import Kl

pytestmark = pytest.mark.brief

KINDS = ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"]
every_kind = pytest.mark.parametrize("kind", KINDS)
TOKENS, WIDTH, VOCABULARY = 300, 256, 1000


def shapes(width=WIDTH, dtype=jnp.bfloat16, tokens=TOKENS, vocabulary=VOCABULARY):
    """Hidden states, head, labels and weights."""
    return (
        jax.ShapeDtypeStruct((tokens, width), dtype),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )


def divergence(hidden, head, _, weights, **options):
    return linear_kl(hidden, head, hidden, head, weights, temperature=2.0, **options)[0]


def cross_entropy(hidden, head, labels, weights, **options):
    return linear_cross_entropy(hidden, head, labels, weights, **options)[0]


def kernels(function, *arguments):
    """How many are in a program lowered for a TPU."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count("tpu_custom_call")


@every_kind
@pytest.mark.parametrize("loss", [divergence, cross_entropy])
def test_the_loss_is_one_kernel_and_its_gradients_another(loss, kind):
    with on_tpu(kind):
        assert kernels(loss, *shapes()) == 1
        assert kernels(jax.grad(loss, (0, 1)), *shapes()) == 2
        assert kernels(jax.grad(loss, (0, 1)), *shapes(vocabulary=97)) == 2


@pytest.mark.parametrize(
    ("width", "dtype", "name"),
    [(256, jnp.bfloat16, "tpu"), (200, jnp.bfloat16, "chunked"), (256, jnp.float32, "chunked")],
)
def test_on_a_tpu_the_kernels_are_chosen_where_they_can_run(width, dtype, name, caplog):
    dispatch._log_choice.cache_clear()
    with on_tpu(), caplog.at_level("INFO", logger="pallas_kernels.dispatch"):
        jax.eval_shape(lambda *a: cross_entropy(*a), *shapes(width, dtype))
    assert caplog.messages == [f"linear_cross_entropy runs {name!r} on tpu"]


def test_what_a_tpu_cannot_run_is_refused_with_what_would():
    def run(**changed):
        jax.eval_shape(lambda *a: divergence(*a, implementation="tpu"), *shapes(**changed))

    with pytest.raises(UnsupportedError, match="needs a TPU, and this runs on cpu; use 'chunked'"):
        run()
    with on_tpu(), pytest.raises(UnsupportedError, match="multiples of 128, not 200 and 200; use"):
        run(width=200)
    with on_tpu(), pytest.raises(UnsupportedError, match="in bfloat16, not float32; use"):
        run(dtype=jnp.float32)
    axes = [(2, "x", AxisType.Auto)]
    with on_tpu(axes=axes), pytest.raises(UnsupportedError, match="the mesh has several devices"):
        run()


def test_on_a_mesh_whose_axes_are_named_each_device_runs_the_kernels():
    axes = [(2, "parts", AxisType.Auto), (4, "rows", AxisType.Auto)]
    cut = {"mesh_axes": MeshAxes(batch=("parts",), vocabulary=("rows",))}
    with on_tpu(axes=axes):
        loss = jax.grad(lambda *a: divergence(*a, **cut), (0, 1))
        assert kernels(loss, *shapes()) == 2


@every_kind
@pytest.mark.parametrize("width", [2048, 2560, 4096])
def test_a_chunk_is_cut_into_what_a_core_holds(kind, width):
    hidden = jax.ShapeDtypeStruct((16384, width), jnp.bfloat16)
    plans = []

    def cut(student, teacher):
        plans.append(tpu_kernels.plan(Kl(Settings(151_936)), 151_936, (student, teacher)))

    with on_tpu(kind):
        jax.eval_shape(cut, hidden, hidden)
    (plan,) = plans
    small = kind == "TPU v4"
    assert width % plan.columns == 0
    assert plan.columns % 128 == plan.rows % 128 == plan.tokens % 128 == 0
    assert (256 if small else 1024) <= plan.tokens <= 1024
    assert plan.rows >= (128 if small else 256)
