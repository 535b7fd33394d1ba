"""A conversion whose recurrent layers are a delta mixer, by one setting, from the teacher to text."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_chain import chain, write_text

from hypenet_jax.convert import convert
from hypenet_jax.generation.generate import generate
from hypenet_jax.weights import load_hf


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["gdn", "kda"])
def test_every_stage_takes_the_mixer_and_the_student_writes_what_a_full_pass_would(mixer, tmp_path):
    config = chain(write_text(tmp_path / "text"), tmp_path / "run")
    stages = tuple(dataclasses.replace(stage, mixer=mixer) for stage in config.stages)
    config = dataclasses.replace(config, stages=stages)
    assert convert(config)
    decoder, params = load_hf(config.stage("finetune").hf_folder, dtype=jnp.float32)
    kinds = [spec.NAME for spec in decoder.config.mixers]
    assert sorted(kinds) == sorted(["softmax", mixer])
    prompt = jnp.arange(2 * 9).reshape(2, 9)
    written = generate(decoder, params, prompt, max_new_tokens=5)
    row = jnp.concatenate([prompt, written], axis=1)
    hidden = decoder.apply({"params": params}, row).hidden
    logits = decoder.apply({"params": params}, hidden, method="logits")
    np.testing.assert_array_equal(jnp.argmax(logits[:, 8:-1], axis=-1), written)
