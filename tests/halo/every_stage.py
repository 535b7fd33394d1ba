"""A tiny teacher and a plan of its student: the loss of every stage with its gradients, a swept layer, a folder."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.method import Models
from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import transfer, transfer_mixers, with_mixers
from hypenet_jax.model.config import MixerOptions, ModelConfig
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.testing import random_params
from hypenet_jax.weights import read_hf, save_hf

KEY = jax.random.key(0)


def go_through_every_stage(
    config: ModelConfig,
    plan: ModelConfig,
    recurrent: MixerOptions,
    batch: Batch,
    folder: pathlib.Path,
) -> ModelConfig:
    """Asserts that all is finite, that every parameter of stage 1 has a gradient, and that the folder gives the student
    back; returns the plan that it says.
    """
    models = Models(
        teacher=Decoder(config, jnp.float32),
        student=Decoder(plan, jnp.float32),
        mixer="lightning",
        recurrent=recurrent,
    )
    spec, single = models.aligned_spec, random_params(config)
    align = AlignConfig().stage(models)
    distill = DistillConfig(start_from="align").stage(models)
    finetune = FinetuneConfig(start_from="distill").stage(models)

    @jax.jit
    def run(single):
        teacher = stack_layers(single, config)
        mixers = transfer_mixers(config, single, spec, KEY)
        student = with_mixers(transfer(config, single, plan, KEY), plan, mixers)
        alignment = lambda m: align.loss({"mixers": m}, teacher, batch)[0].value()  # noqa: E731
        gap, gradients = jax.value_and_grad(alignment)(mixers)
        stacked = stack_layers(student, plan)
        kl, _ = distill.loss(stacked, teacher, batch)
        cross_entropy, _ = finetune.loss(stacked, None, batch)
        losses = jnp.stack([gap, kl.value(), cross_entropy.value()])
        text = (batch.tokens, batch.positions, batch.segment_ids)
        swept = {"params": swept_params(teacher, mixers, (0,))}
        return losses, gradients, SweptDecoder(models.teacher, spec).apply(swept, *text), student

    losses, gradients, swept, student = run(single)
    assert np.isfinite(losses).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).reshape(len(leaf), -1).max(1).min() > 0, path
    assert np.isfinite(swept.hidden).all()

    save_hf(folder / "student", plan, student, dtype="float32")
    read, leaves = read_hf(folder / "student")
    assert read == plan
    jax.tree.map(np.testing.assert_array_equal, leaves, student)
    return read
