"""SmolLM2-135M-Instruct to a HypeNet on text that every machine has:  make smollm2

About two hours on two CPU cores; ARGS='--budget gpu' trains on a hundred times the tokens, in about ten minutes of one
large GPU.
"""

import dataclasses
import functools
from typing import Literal

from configs.evals.smollm2 import config as evaluation
from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.installed_text import FIELD, FILE
from hypenet_jax.data.sources import JsonLines
from hypenet_jax.data.tokenizer import TokenizerFile
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.method import Method
from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.presets import smollm2_135m
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

LENGTH = 512  # of stages 1 and 2, and the constant of the log-length logit scale
KEPT, HALF = 7, 15  # of 30 layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a conversion may cost.

    Attributes:
      rows: of a step of stages 1 and 2, and of the batches of closed-form fits.
      fitted, refitted: batches of the ridge start and of the refit.
      align, distill, finetune: steps.
      long, long_rows: tokens of a row of stage 3, and rows of its step.
      selected, selected_length: rows per layer of the selection, and their tokens.
    """

    rows: int
    fitted: int
    refitted: int
    align: int
    distill: int
    finetune: int
    long: int
    long_rows: int
    selected: int
    selected_length: int
    dtype: Literal["float32", "bfloat16"]


BUDGETS = {
    "cpu": Budget(
        rows=2,
        fitted=64,
        refitted=128,
        align=188,
        distill=184,
        finetune=16,
        long=1024,
        long_rows=2,
        selected=16,
        selected_length=256,
        dtype="float32",
    ),
    "gpu": Budget(
        rows=32,
        fitted=64,
        refitted=128,
        align=1200,
        distill=4900,
        finetune=300,
        long=8192,
        long_rows=8,
        selected=64,
        selected_length=1024,
        dtype="bfloat16",
    ),
}


def config(
    run_dir: str = "runs/smollm2_135m",
    budget: Literal["cpu", "gpu"] = "cpu",
    controls: bool = False,
    seed: int = 0,
    teacher: str = "runs/smollm2_135m/teacher",
    data: str = "runs/smollm2_135m/text",
) -> HaloConfig:
    """The conversion of a real language model.

    Args:
      run_dir: where everything goes.
      budget: what the machine can do.
      controls: also convert with half of the layers kept, with evenly spaced ones, and from the published starts.
      seed: of the order of the text and of the gates.
      teacher: Hugging Face folder of SmolLM2-135M-Instruct.
      data: folder that `launch.collect_text` wrote.
    """
    made = conversion(run_dir, teacher, data, BUDGETS[budget], seed)
    if controls:
        made += controls_of(made, BUDGETS[budget])
    measured = evaluation(run_dir, teacher, budget == "gpu", controls, seed)
    return HaloConfig(run_dir=run_dir, stages=made, evaluation=measured)


def conversion(
    run_dir: str, teacher: str, text: str, budget: Budget, seed: int
) -> tuple[StageConfig, ...]:
    """Stages 1, selection, refit, 2 and 3."""
    corpus = CorpusConfig(
        folder=f"{run_dir}/data",
        source=JsonLines(text, (FILE,), FIELD),
        tokenizer=TokenizerFile(teacher),
        block_length=max(budget.long, 2048),
        heldout_fraction=0.03,
        seed=0,
    )
    rows = functools.partial(DataConfig, corpus=corpus, seed=seed)
    short = rows(context_length=LENGTH, sequences_per_step=budget.rows, first_token=0)

    def stage(
        name: str,
        method: Method,
        student: StudentConfig | None,
        data: DataConfig,
        training: TrainingConfig | None = None,
        export: bool = False,
    ) -> StageConfig:
        return StageConfig(
            name=name,
            run_dir=run_dir,
            teacher=smollm2_135m(),
            teacher_folder=teacher,
            student=student,
            method=method,
            data=data,
            training=training,
            mesh=MeshConfig(),
            seed=seed,
            export="float32" if export else None,
        )

    ridge = AlignConfig(ridge_batches=budget.fitted)
    align = stage("align", ridge, None, short, training(budget, budget.align, 2e-3, 2e-5))
    scored = rows(context_length=budget.selected_length, sequences_per_step=8, first_token=0)
    # By likelihood: on so few rows the published rule keeps layers that matter little.
    select = SelectConfig(
        start_from="align", keep=KEPT, rows=budget.selected, eps=0.01, rule="likelihood"
    )
    student = StudentConfig(selected_by="select", logit_scale=float(LENGTH))
    next_text = tokens_after(short, budget.fitted + budget.align)
    unread = dataclasses.replace(short, first_token=next_text)
    refit = RefitConfig(start_from="align", batches=budget.refitted, ridge=0.1)
    distill = stage(
        "distill",
        DistillConfig(start_from="refit", from_student=True),
        student,
        dataclasses.replace(unread, first_token=tokens_after(unread, budget.refitted)),
        training(budget, budget.distill, 3e-4, 3e-5),
        export=True,
    )
    long = rows(
        context_length=budget.long,
        sequences_per_step=budget.long_rows,
        first_token=tokens_after(distill.data, budget.distill),
    )
    finetune = FinetuneConfig(start_from="distill")
    return (
        align,
        stage("select", select, None, scored),
        stage("refit", refit, student, unread, export=True),
        distill,
        stage(
            "finetune", finetune, student, long, training(budget, budget.finetune, 1e-5, 1e-5), True
        ),
    )


def training(budget: Budget, steps: int, peak_lr: float, final_lr: float) -> TrainingConfig:
    return TrainingConfig(
        optimizer=OptimizerConfig(
            peak_lr=peak_lr, final_lr=final_lr, warmup_steps=min(20, steps // 4), steps=steps
        ),
        loop=LoopConfig(
            steps=steps, accumulate=1, checkpoint_every=50, evaluate_every=max(1, steps // 4)
        ),
        dtype=budget.dtype,
        remat="full" if budget.long > 1024 else "none",
    )


def controls_of(made: tuple[StageConfig, ...], budget: Budget) -> tuple[StageConfig, ...]:
    """The same with half of the layers kept, the refit of evenly spaced layers, and the published starts.

    The published starts read in training what ours read in training and in closed form.
    """
    align, select, refit, distill, _ = made
    assert isinstance(select.method, SelectConfig)
    half = StudentConfig(selected_by="half_select", logit_scale=float(LENGTH))
    even = StudentConfig(softmax_layers=tuple(range(3, 30, 4)), logit_scale=float(LENGTH))
    selection = dataclasses.replace(select.method, keep=HALF)
    published = dataclasses.replace(
        align,
        name="published_align",
        method=AlignConfig(),
        training=training(budget, budget.fitted + budget.align, 2e-3, 2e-5),
    )
    return (
        dataclasses.replace(refit, name="even_refit", student=even),
        dataclasses.replace(select, name="half_select", method=selection),
        dataclasses.replace(refit, name="half_refit", student=half),
        dataclasses.replace(
            distill,
            name="half_distill",
            student=half,
            method=DistillConfig(start_from="half_refit", from_student=True),
        ),
        published,
        dataclasses.replace(
            distill,
            name="published_distill",
            method=DistillConfig(start_from="published_align"),
            data=refit.data,
            training=training(budget, budget.refitted + budget.distill, 3e-4, 3e-5),
        ),
    )
