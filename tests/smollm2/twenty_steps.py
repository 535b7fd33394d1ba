"""Stages 1 and 2 of a real model, 20 steps each on tiny rows of the guides; every fourth layer keeps softmax attention.

python -m launch.halo tests/smollm2/twenty_steps.py --teacher FOLDER --run-dir FOLDER
"""

import dataclasses

from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.sources import TextFiles
from hypenet_jax.data.tokenizer import TokenizerFile
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig
from hypenet_jax.weights import read_config

STEPS, ROWS, LENGTH = 20, 2, 64


def config(teacher: str, run_dir: str) -> HaloConfig:
    """Of a teacher's folder; read from the repository's root."""
    model = read_config(teacher)
    corpus = CorpusConfig(
        folder=f"{run_dir}/text",
        source=TextFiles("docs", ("*.md",)),
        tokenizer=TokenizerFile(teacher),
        block_length=LENGTH,
        heldout_fraction=0.0,
        seed=0,
    )
    rows = DataConfig(
        corpus=corpus, context_length=LENGTH, sequences_per_step=ROWS, first_token=0, seed=0
    )
    align = StageConfig(
        name="align",
        run_dir=run_dir,
        teacher=model,
        teacher_folder=teacher,
        student=None,
        method=AlignConfig(),
        data=rows,
        training=_training(3e-3),
        mesh=MeshConfig(),
        seed=0,
    )
    kept = tuple(range(3, model.num_layers, 4))
    distill = dataclasses.replace(
        align,
        name="distill",
        student=StudentConfig(softmax_layers=kept),
        method=DistillConfig(start_from="align"),
        data=dataclasses.replace(rows, first_token=tokens_after(rows, STEPS)),
        training=_training(1e-3),
        export="float32",
    )
    return HaloConfig(run_dir=run_dir, stages=(align, distill))


def _training(peak_lr: float) -> TrainingConfig:
    return TrainingConfig(
        optimizer=OptimizerConfig(
            peak_lr=peak_lr, final_lr=peak_lr / 10, warmup_steps=2, steps=STEPS
        ),
        loop=LoopConfig(steps=STEPS, accumulate=1, checkpoint_every=STEPS),
        dtype="float32",
    )
