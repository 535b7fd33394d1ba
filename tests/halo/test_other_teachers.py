"""Teachers without norms of queries and keys, with biases, with layers without positions: through every stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_stage import go_through_every_stage

from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import transfer_mixers, with_mixers
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, aligned_spec, hypenet
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import LightningSpec
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.testing import random_params, tiny_teacher

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
    rotary = MixerOptions(rope=True)
    control = hypenet(config, (0, 1), softmax=rotary)
    assert [spec.rope_theta for spec in control.mixers] == [1e4] * 4
    with pytest.raises(ValueError, match="a layer of the teacher has no rotary positions"):
        hypenet(config, (0, 3), softmax=rotary)


def test_a_sweep_replaces_layers_of_any_group(batch):
    """The last layer of a smollm3 is a group of its own."""
    config = tiny_teacher(30, family="smollm3")
    spec, params = aligned_spec(config), random_params(config)
    mixers = transfer_mixers(config, params, spec, KEY)
    text = (batch.tokens, batch.positions, batch.segment_ids)
    last = dataclasses.replace(config, mixers=(*config.mixers[:-1], spec))

    @jax.jit
    def run(params):
        swept = swept_params(stack_layers(params, config), mixers, (1,))
        wanted = stack_layers(with_mixers(params, last, mixers), last)
        decoders = SweptDecoder(Decoder(config, jnp.float32), spec), Decoder(last, jnp.float32)
        trees = swept, wanted
        return [d.apply({"params": p}, *text).hidden for d, p in zip(decoders, trees, strict=True)]

    np.testing.assert_allclose(*run(params), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "smollm3"])
def test_a_tiny_model_goes_through_every_stage_and_a_folder(family, batch, tmp_path):
    config = tiny_teacher(30, family=family)
    read = go_through_every_stage(config, hypenet(config, (1,)), AS_PUBLISHED, batch, tmp_path)
    assert dataclasses.replace(read, mixers=config.mixers) == config
