"""Teachers without norms of queries and keys, with biases, with layers without positions: through every stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.method import Models
from hypenet_jax.halo.select import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import transfer, transfer_mixers, with_mixers
from hypenet_jax.model.config import aligned_spec, hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import LightningSpec
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.testing import random_params, tiny_teacher
from hypenet_jax.weights import read_hf, save_hf

pytestmark = [pytest.mark.extended, pytest.mark.brief]
KEY = jax.random.key(0)


def mixer_of(family: str):
    """Teacher's attention and stage-1 mixer of layer 0."""
    config = tiny_teacher(family=family)
    params = random_params(config)
    mixers = transfer_mixers(config, params, aligned_spec(config), KEY)
    return params["layer_0"]["mixer"], jax.tree.map(lambda leaf: leaf[0], mixers)


def test_norms_that_the_teacher_lacks_start_at_one():
    for name in ("q_norm", "k_norm"):
        np.testing.assert_array_equal(mixer_of("llama")[1][name]["scale"], np.ones(8))
        theirs, ours = mixer_of("qwen3")
        np.testing.assert_array_equal(ours[name]["scale"], theirs[name]["scale"])


def test_biases_go_where_their_heads_go():
    theirs, ours = mixer_of("qwen2")
    np.testing.assert_array_equal(ours["q"]["bias"], theirs["q"]["bias"])
    for name in ("k", "v"):
        repeated = np.repeat(theirs[name]["bias"], 2, axis=0)
        np.testing.assert_array_equal(ours[name]["bias"], repeated)


def test_kept_layers_get_no_norms_and_lose_no_bias():
    for family in ("llama", "qwen2"):
        config = tiny_teacher(family=family)
        kept = hypenet(config, (0,)).mixers[0]
        assert (kept.qk_norm, kept.qkv_bias) == (False, family == "qwen2")


def test_recurrent_layers_have_rotary_positions_where_the_teachers_layer_has_none():
    config = tiny_teacher(family="smollm3", layers=4)
    assert hypenet(config, ()).mixers == (LightningSpec(4, 8, 1e4),) * 4
    assert {spec.rope_theta for spec in hypenet(config, (0, 3)).mixers[::3]} == {None}
    control = hypenet(config, (0, 1), rope_in_softmax=True)
    assert [spec.rope_theta for spec in control.mixers] == [1e4] * 4
    with pytest.raises(ValueError, match="rope_in_softmax"):
        hypenet(config, (0, 3), rope_in_softmax=True)


def test_a_sweep_replaces_layers_of_any_group(batch):
    """The last layer of a smollm3 is a group of its own."""
    config = tiny_teacher(30, family="smollm3")
    spec, params = aligned_spec(config), random_params(config)
    mixers = transfer_mixers(config, params, spec, KEY)
    text = (batch.tokens, batch.positions, batch.segment_ids)
    last = dataclasses.replace(config, mixers=(*config.mixers[:-1], spec))

    @jax.jit
    def run(params):
        swept = swept_params(stack_layers(params, config), mixers, 1)
        wanted = stack_layers(with_mixers(params, last, mixers), last)
        decoders = SweptDecoder(Decoder(config, jnp.float32), spec), Decoder(last, jnp.float32)
        trees = swept, wanted
        return [d.apply({"params": p}, *text).hidden for d, p in zip(decoders, trees, strict=True)]

    np.testing.assert_allclose(*run(params), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "smollm3"])
def test_a_tiny_model_goes_through_every_stage_and_a_folder(family, batch, tmp_path):
    config = tiny_teacher(30, family=family)
    plan = hypenet(config, (1,))
    models = Models(
        teacher=Decoder(config, jnp.float32), student=Decoder(plan, jnp.float32), mixer="lightning"
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
        swept = {"params": swept_params(teacher, mixers, 0)}
        return losses, gradients, SweptDecoder(models.teacher, spec).apply(swept, *text), student

    losses, gradients, swept, student = run(single)
    assert np.isfinite(losses).all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).reshape(len(leaf), -1).max(1).min() > 0, path
    assert np.isfinite(swept.hidden).all()

    save_hf(tmp_path / "student", plan, student, dtype="float32")
    read, leaves = read_hf(tmp_path / "student")
    assert read == plan
    jax.tree.map(np.testing.assert_array_equal, leaves, student)
    assert dataclasses.replace(read, mixers=config.mixers) == config
