"""A conversion of a teacher of every other family, from its folder to the student's."""

import pytest
from tiny_chain import TEACHER, chain, write_text

from hypenet_jax.convert import convert
from hypenet_jax.testing import tiny_teacher
from hypenet_jax.weights import FAMILIES, load_hf, read_config


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen3"])
def test_a_chain_reads_the_teachers_folder_and_leaves_the_students(family, tmp_path):
    teacher = tiny_teacher(TEACHER.vocab_size, family=family)
    config = chain(write_text(tmp_path / "text"), tmp_path / "run", teacher)
    assert convert(config)
    assert read_config(config.stage("teacher").hf_folder) == teacher
    decoder, _ = load_hf(config.stage("finetune").hf_folder)
    (kept,) = decoder.config.softmax_layers
    assert decoder.config.mixers[kept].qkv_bias == (family == "qwen2")
