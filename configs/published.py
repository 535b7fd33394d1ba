"""The published recipe of HALO, shared by the 2B, 5B and 9B conversions: what differs is in their folders.

Budgets (arXiv 2601.22156 and its official configurations): stage 1 0.33 B tokens, stage 2 0.98 B, stage 3 1.05 B.
Tokens per step do not depend on the number of devices.
"""

import dataclasses

from hypenet_jax.config import HaloConfig, RunConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.sources import JsonLines
from hypenet_jax.data.tokenizer import TokenizerFile
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

SHORT, LONG = 512, 16_384  # context of stages 1 and 2, and of stage 3
ALIGN_STEPS, DISTILL_STEPS, FINETUNE_STEPS = 20_000, 20_000, 500
ALIGN_ROWS, DISTILL_ROWS, FINETUNE_ROWS = (
    32,
    96,
    128,
)  # per step: 8 devices x 4, x 12, and 8 x 16 micro-batches
SELECT_LENGTH = 4096  # as the longest retrieval task of the published selection
WARMUP = 50


def corpus(teacher_folder: str, text: str) -> CorpusConfig:
    """JSON lines with a "text" field (FineWeb-Edu in the paper), read with the teacher's own tokenizer."""
    source = JsonLines(text, ("**/*.jsonl", "**/*.jsonl.gz"), "text")
    return CorpusConfig(f"{text}/prepared", source, TokenizerFile(teacher_folder), LONG, 0.001, 0)


def align(teacher: ModelConfig, teacher_folder: str, text: str, run_dir: str) -> RunConfig:
    """Stage 1: every layer's lightning mixer against the teacher's attention, learning rate 1e-3 to 1e-5."""
    data = DataConfig(corpus(teacher_folder, text), SHORT, ALIGN_ROWS, 0, seed=0)
    return RunConfig(
        name="align",
        run_dir=run_dir,
        teacher=teacher,
        teacher_folder=teacher_folder,
        student=None,
        stage=AlignConfig(),
        data=data,
        training=_training(ALIGN_STEPS, 1e-3, 1e-5),
        mesh=MeshConfig(),
        seed=0,
    )


def select(
    teacher: ModelConfig, teacher_folder: str, text: str, run_dir: str, *, keep: int
) -> RunConfig:
    """Which layers keep softmax attention: codes stated in words are asked for, text is read, layer by layer.

    The released models were chosen with other tasks; the other configs keep the published layers.
    """
    before = align(teacher, teacher_folder, text, run_dir)
    data = dataclasses.replace(before.data, context_length=SELECT_LENGTH, sequences_per_step=4)
    return dataclasses.replace(
        before,
        name="select",
        stage=SelectConfig("align", keep=keep, rows=128, eps=0.01),
        data=data,
        training=None,
    )


def distill(
    teacher: ModelConfig,
    teacher_folder: str,
    text: str,
    run_dir: str,
    *,
    softmax_layers: tuple[int, ...],
    peak_lr: float,
) -> RunConfig:
    """Stage 2: KL to the teacher, everything trainable, `peak_lr` to 1e-5."""
    before = align(teacher, teacher_folder, text, run_dir).data
    data = DataConfig(
        before.corpus, SHORT, DISTILL_ROWS, tokens_after(before, ALIGN_STEPS), before.seed
    )
    return RunConfig(
        name="distill",
        run_dir=run_dir,
        teacher=teacher,
        teacher_folder=teacher_folder,
        student=StudentConfig(softmax_layers),
        stage=DistillConfig("align"),
        data=data,
        training=_training(DISTILL_STEPS, peak_lr, 1e-5, remat="full"),
        mesh=MeshConfig(),
        seed=0,
    )


def finetune(
    teacher: ModelConfig,
    teacher_folder: str,
    text: str,
    run_dir: str,
    *,
    softmax_layers: tuple[int, ...],
    logit_scale: float,
) -> RunConfig:
    """Stage 3: next token at 16,384, constant learning rate 1e-5 after the warm-up, 16 micro-batches."""
    parent = distill(
        teacher, teacher_folder, text, run_dir, softmax_layers=softmax_layers, peak_lr=1e-4
    )
    first = tokens_after(parent.data, DISTILL_STEPS)
    data = DataConfig(parent.data.corpus, LONG, FINETUNE_ROWS, first, parent.data.seed)
    return RunConfig(
        name="finetune",
        run_dir=run_dir,
        teacher=teacher,
        teacher_folder=teacher_folder,
        student=StudentConfig(softmax_layers, logit_scale=logit_scale),
        stage=FinetuneConfig("distill"),
        data=data,
        training=_training(FINETUNE_STEPS, 1e-5, 1e-5, remat="full", accumulate=16),
        mesh=MeshConfig(),
        seed=0,
        export="bfloat16",
    )


def upstream_parity(run: RunConfig) -> RunConfig:
    """The run as the official code does it, to compare with the released models.

    Rows cross documents (one segment, one count of positions), and the first update has learning rate 0.
    """
    data = dataclasses.replace(run.data, reset_documents=False)
    training = run.training
    if training is not None:
        optimizer = dataclasses.replace(training.optimizer, first_update_at_zero=True)
        training = dataclasses.replace(training, optimizer=optimizer)
    return dataclasses.replace(run, data=data, training=training)


def chain(*runs: RunConfig) -> HaloConfig:
    return HaloConfig(runs[0].run_dir, runs)


def _training(
    steps: int, peak_lr: float, final_lr: float, *, remat: str = "none", accumulate: int = 1
) -> TrainingConfig:
    return TrainingConfig(
        OptimizerConfig(peak_lr, final_lr, WARMUP, steps),
        LoopConfig(steps, accumulate, checkpoint_every=250, evaluate_every=250),
        dtype="bfloat16",
        remat="full" if remat == "full" else "none",
    )
