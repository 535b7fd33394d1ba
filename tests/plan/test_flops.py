"""FLOPs by formula agree with what XLA counts where it counts everything, and with the well-known 6 N D."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import load
from hypenet_jax.convert.programs import build_stage, student_config
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.cost import head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import make_mesh

pytestmark = pytest.mark.brief

TEACHER = ModelConfig(
    vocab_size=512,
    d_model=256,
    d_mlp=512,
    mixers=(SoftmaxSpec(4, 2, 64, rope_theta=1e4),) * 2,
    tie_embeddings=True,
)
DISTILL = "configs/halo_2b/distill.py"


def count(config):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(Decoder(config)).shapes))


@pytest.mark.parametrize("config", [TEACHER, hypenet(TEACHER, (0,))])
def test_products_of_a_short_row_are_those_that_xla_counts(config):
    decoder = Decoder(config, jnp.float32, scan=False)
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)

    def run(params, tokens):
        hidden = decoder.apply({"params": params}, tokens).hidden
        return decoder.apply({"params": params}, hidden, method="logits")

    counted = jax.jit(run).lower(abstract_params(decoder).shapes, tokens).compile().cost_analysis()
    ours = layers_flops(config, 16) + head_flops(config, 16)
    assert ours == pytest.approx(counted["flops"], rel=0.1)


def test_a_part_after_others_costs_what_the_whole_costs_without_them():
    student = hypenet(TEACHER, (0,))
    parts = layers_flops(student, 300) + layers_flops(student, 700, before=300)
    assert parts == layers_flops(student, 1000)


@functools.cache
def step_flops(config):
    return build_stage(config, make_mesh(config.mesh)).flops


@pytest.fixture
def distill(in_the_repository):
    return load(DISTILL, StageConfig)


def test_distillation_costs_six_per_weight_of_the_student_and_two_of_the_teacher(distill):
    tokens = distill.data.sequences_per_step * distill.data.context_length
    rough = 6 * count(student_config(distill)) + 2 * count(distill.teacher)
    assert step_flops(distill).model == pytest.approx(rough * tokens, rel=0.05)


def test_only_remat_recomputes_and_the_mathematics_stays(distill):
    training = dataclasses.replace(distill.training, remat="none")
    kept = step_flops(dataclasses.replace(distill, training=training))
    assert kept.recomputed == 0
    assert kept.model == step_flops(distill).model
    assert 0 < step_flops(distill).recomputed < kept.model / 3
