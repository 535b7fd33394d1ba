"""The shipped stages with models of two narrow layers."""

import dataclasses
from collections.abc import Callable

import pytest

from hypenet_jax.config import StageConfig, StudentConfig
from hypenet_jax.config_file import load
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import SoftmaxSpec

TEACHER = ModelConfig(
    vocab_size=512,
    d_model=64,
    d_mlp=128,
    mixers=(SoftmaxSpec(4, 4, 16, rope_theta=1e4),) * 2,
    tie_embeddings=True,
)


@pytest.fixture
def tiny(in_the_repository) -> Callable[..., StageConfig]:
    """tiny(stage, *arguments): a stage of the 2B conversion, made small."""

    def make(stage: str, *arguments: str) -> StageConfig:
        run = load(f"configs/halo_2b/{stage}.py", StageConfig, arguments)
        corpus = dataclasses.replace(run.data.corpus, block_length=16)
        data = dataclasses.replace(
            run.data, corpus=corpus, context_length=16, sequences_per_step=16, first_token=0
        )
        student = None if run.student is None else StudentConfig(softmax_layers=(0,))
        loop = dataclasses.replace(run.training.loop, accumulate=1)
        training = dataclasses.replace(run.training, loop=loop)
        return dataclasses.replace(
            run, teacher=TEACHER, data=data, student=student, training=training
        )

    return make
