"""Students that are not as published: what each option changes, and that every stage and a folder take it."""

import dataclasses

import jax
import numpy as np
import pytest
from every_stage import go_through_every_stage

from hypenet_jax.halo.closed_form.ridge import ridge_start
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.halo.transfer import transfer
from hypenet_jax.model.config import MixerOptions, hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.testing import random_params, tiny_teacher
from hypenet_jax.weights.hf_config import from_hf, to_hf

pytestmark = [pytest.mark.extended, pytest.mark.brief]

BARE = MixerOptions(rope=False, qk_norm=False, output_gate=False, expand_kv=False)
FULL = MixerOptions(rope=True, qk_norm=True, output_gate=True, expand_kv=True)
KEY = jax.random.key(0)


def test_a_plan_with_everything_off_goes_through_every_stage_and_a_folder(batch, tmp_path):
    config = tiny_teacher(30)
    plan = hypenet(config, (1,), recurrent=BARE, softmax=BARE, tie_embeddings=False)
    read = go_through_every_stage(config, plan, BARE, batch, tmp_path)
    assert not read.tie_embeddings
    for spec in read.mixers:
        assert (spec.rope_theta, spec.qk_norm, spec.output_gate) == (None, False, False)
        assert spec.num_kv_heads == 2


def test_a_plan_with_everything_on_has_the_parameters_and_the_fields_that_say_so():
    config = tiny_teacher(family="qwen2")
    plan = hypenet(config, (1,), recurrent=FULL, softmax=FULL)
    for spec in plan.mixers:
        assert (spec.rope_theta, spec.qk_norm, spec.output_gate) == (1e4, True, True)
        assert spec.axis_sizes()["k"] == 4
    made = jax.eval_shape(lambda params: transfer(config, params, plan, KEY), random_params(config))
    shapes = abstract_params(Decoder(plan, scan=False)).shapes
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
    assert from_hf(to_hf(plan, "float32")) == plan


def test_closed_form_starts_take_a_plan_with_everything_off(batch, work_with):
    falls = []

    def fit(number, count, kernel, solve):
        fitted, values = solve()
        (before,), (after,) = (
            [v for k, v in values.items() if k.endswith(f"/{when}")] for when in ("before", "after")
        )
        falls.append(after < before)
        return fitted

    work = work_with([batch], recurrent=BARE, softmax=BARE, fit=fit)
    ridge_start(work, 1, 1e-2, work.weights.parent)
    refitted = RefitConfig(start_from="align", batches=1).run(work)
    assert falls == [True] * 6
    shapes = abstract_params(work.models.student).shapes
    jax.tree.map(
        lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), refitted, shapes
    )


def test_norms_that_a_kept_layer_did_not_have_start_at_one_and_dropped_ones_are_gone():
    for family, asked in (("llama", True), ("qwen3", False)):
        config = tiny_teacher(family=family)
        plan = hypenet(config, (1,), softmax=MixerOptions(qk_norm=asked))
        mixer = transfer(config, random_params(config), plan, KEY)["layer_1"]["mixer"]
        assert ("q_norm" in mixer) is asked
        if asked:
            np.testing.assert_array_equal(mixer["k_norm"]["scale"], 1.0)


def test_a_head_is_tied_or_kept_as_the_plan_says():
    untied = dataclasses.replace(tiny_teacher(), tie_embeddings=False)
    assert hypenet(untied, (1,)).tie_embeddings is False
    plan = hypenet(untied, (1,), tie_embeddings=True)
    assert "head" not in transfer(untied, random_params(untied), plan, KEY)


def test_a_kept_layer_cannot_take_over_positions_that_the_teacher_does_not_have():
    with pytest.raises(ValueError, match="a layer of the teacher has no rotary positions"):
        hypenet(tiny_teacher(family="smollm3"), (1,), softmax=MixerOptions(rope=True))


def test_a_gate_that_a_mixer_always_has_cannot_be_left_out():
    with pytest.raises(ValueError, match="the mixer kda has no output_gate"):
        hypenet(tiny_teacher(), (1,), mixer="kda", recurrent=MixerOptions(output_gate=False))
