"""A conversion of a teacher of every other family, from its folder to the student's."""

import jax
import numpy as np
import pytest
from tiny_chain import TEACHER, chain, write_text

from hypenet_jax.convert import convert
from hypenet_jax.convert.programs import student_config
from hypenet_jax.model.config import with_logit_scale
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.testing import tiny_teacher
from hypenet_jax.train.stage_output import load_params
from hypenet_jax.weights import FAMILIES, load_hf, read_config


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen3"])
def test_a_chain_reads_the_teachers_folder_and_leaves_the_students(family, tmp_path):
    teacher = tiny_teacher(TEACHER.vocab_size, family=family)
    config = chain(write_text(tmp_path / "text"), tmp_path / "run", teacher)
    assert convert(config)
    assert read_config(config.stage("teacher").hf_folder) == teacher
    last = config.stage("finetune")
    decoder, params = load_hf(last.hf_folder)
    assert decoder.config == with_logit_scale(student_config(last), LogLengthScale(16.0))
    trained = unstack_layers(load_params(last.folder / "final", last.name)[0])
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    (kept,) = decoder.config.softmax_layers
    assert decoder.config.mixers[kept].qkv_bias == (family == "qwen2")
