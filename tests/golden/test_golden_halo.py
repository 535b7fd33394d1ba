"""Stage 1, the distillation loss and the choice of layers against the official code."""

import dataclasses

import golden_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.imitation import imitate
from hypenet_jax.halo.transfer import transfer_mixers
from hypenet_jax.losses import distillation, squared_gap
from hypenet_jax.model.config import aligned_spec
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.presets import HYPENET_2B_SOFTMAX_LAYERS
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.weights.names import flatten, tensors


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The stage-1 case: a frozen teacher, the students of its layers, and the text."""

    teacher: Decoder
    frozen: dict
    student: dict
    batch: Batch


@pytest.fixture(scope="module")
def alignment(load):
    single, params = load("teacher")
    config = single.config
    mixers = transfer_mixers(config, params, aligned_spec(config), jax.random.key(0))
    new = golden_recipe.alignment_student()
    mixers["output_norm"] = {"scale": jnp.stack([x["o_norm"].reshape(4, 16) for x in new])}
    mixers["gate"] = {"kernel": jnp.stack([x["z_proj"].T.reshape(64, 4, 16) for x in new])}
    tokens = jnp.asarray(golden_recipe.tokens("alignment"))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    ones = jnp.ones_like(tokens)
    return Alignment(
        teacher=Decoder(config, jnp.float32),
        frozen=stack_layers(params, config),
        student={"mixers": mixers},
        batch=Batch(tokens, ones, positions, ones.astype(jnp.float32)),
    )


def official_layout(config, mixers):
    """Gradients (or weights) of stacked student mixers by official name, "layer_0.q_proj.weight"."""
    plan = dataclasses.replace(config, mixers=(aligned_spec(config),) * config.num_layers)
    leaves = flatten(mixers)
    for tensor in tensors(plan):
        layer, _, path = tensor.ours.partition("/mixer/")
        if path:
            name = layer + "." + tensor.theirs.partition("self_attn.")[2]
            yield (
                name,
                tensor.to_theirs(np.asarray(leaves[path][int(layer.removeprefix("layer_"))])),
            )


def test_keys_and_values_of_the_student_repeat_each_head_in_place(alignment, golden):
    widened = dict(official_layout(alignment.teacher.config, alignment.student["mixers"]))
    for name in ("layer_0.k_proj.weight", "layer_0.v_proj.weight"):
        golden.close(f"alignment/student_init.{name}", widened[name], atol=1e-6)


@pytest.fixture(scope="module")
def stage_one(alignment):
    """Everything of stage 1 in one compilation: (taps, imitations, both losses, gradients of the first)."""
    teacher, frozen, batch = alignment.teacher, alignment.frozen, alignment.batch
    spec = aligned_spec(teacher.config)
    mse, l2norm = (
        align_stage(AlignConfig(loss=loss), teacher, spec).loss for loss in ("mse", "l2norm")
    )

    @jax.jit
    def run(student):
        text = (batch.tokens, batch.positions, batch.segment_ids)
        taps = teacher.apply({"params": frozen}, *text, taps=True).taps
        mean = lambda student, loss: loss(student, frozen, batch)[0].value()  # noqa: E731
        loss, gradients = jax.value_and_grad(mean)(student, mse)
        losses = {"loss_mse": loss, "loss_l2norm": mean(student, l2norm)}
        return taps, imitate(spec, student, teacher, taps, batch), losses, gradients

    return run(alignment.student)


def test_mixer_outputs_and_the_loss_of_each_layer_are_the_official_ones(stage_one, golden):
    taps, imitations, _, _ = stage_one
    golden.close("alignment/teacher_mixer_out", taps.outputs, atol=3e-4)
    golden.close("alignment/student_mixer_out", imitations, atol=3e-4)
    gaps = np.mean(np.square(imitations - taps.outputs, dtype=np.float64), axis=(1, 2, 3))
    golden.close("alignment/loss_mse_per_layer", gaps, rtol=1e-5)


@pytest.mark.parametrize("name", ["loss_mse", "loss_l2norm"])
def test_stage_one_has_the_official_loss(name, stage_one, golden):
    golden.close(f"alignment/{name}", stage_one[2][name], rtol=1e-5)


def test_stage_one_has_the_official_gradients(alignment, stage_one, golden):
    gradients = stage_one[3]["mixers"]
    for name, gradient in official_layout(alignment.teacher.config, gradients):
        norm = np.linalg.norm(gradient.astype(np.float64))
        golden.close(f"alignment/grad_norm.{name}", norm, rtol=1e-5)
        if name.startswith(("layer_0.", "layer_3.")):
            golden.close(f"alignment/grad.{name}", gradient, rtol=1e-5)


def test_distillation_has_the_official_loss_and_gradient(golden):
    student, teacher = (jnp.asarray(x) for x in golden_recipe.kl_logits())
    identity, weights = jnp.eye(student.shape[-1]), jnp.ones(student.shape[:2])

    @jax.jit
    @jax.value_and_grad
    def run(student, teacher):
        loss = distillation(student, identity, teacher, identity, weights, temperature=1.0)
        return loss.total / loss.weight

    loss, gradient = run(student, teacher)
    golden.close("kl/loss_kl", loss, rtol=1e-5)
    golden.close("kl/grad_student_logits", gradient, rtol=1e-5)
    gap = squared_gap(student, teacher, weights)
    golden.close("kl/loss_mse", gap.total / gap.weight, rtol=1e-5)
    rounded = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (student, teacher))
    golden.close("kl/loss_kl_bf16_inputs_fp32_math", run(*rounded)[0], rtol=1e-5)


def test_published_scores_give_the_published_importances_and_layers():
    rules = pytest.importorskip("hypenet_jax.halo.selection.rules")
    scores = golden_recipe.layer_scores()
    column = lambda name: np.asarray([layer[name] for layer in scores["layers"]])  # noqa: E731
    importance = rules.halo_importance(column("retrieval_average"), column("commonsense_average"))
    np.testing.assert_allclose(importance, column("importance"), rtol=1e-9)
    layers = rules.keep_layers(importance, scores["n_attention_layers"])
    assert layers == HYPENET_2B_SOFTMAX_LAYERS
