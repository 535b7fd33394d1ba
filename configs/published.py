"""The stages of HALO as published.

Budgets (arXiv 2601.22156 and its official configurations): stage 1 0.33 B tokens, stage 2 0.98 B, stage 3 1.05 B.
Tokens per step do not depend on the number of devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

from configs.evals.model import config as evaluation
from configs.recipes import PRESETS, Preset, Recipe
from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.sources import Conversations, JsonLines
from hypenet_jax.data.tokenizer import TokenizerFile
from hypenet_jax.evals.model import HeldOut
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

SHORT, LONG = 512, 16_384  # context of stages 1 and 2, and of stage 3
ALIGN_STEPS, DISTILL_STEPS, FINETUNE_STEPS = 20_000, 20_000, 500
# Rows per step: 8 devices x 4, x 12, and 8 x 16 micro-batches.
ALIGN_ROWS, DISTILL_ROWS, FINETUNE_ROWS = 32, 96, 128
# Of starts in closed form: 1M tokens before stage 1, 0.26M before stage 2, more than any projection has inputs.
RIDGE_BATCHES, REFIT_BATCHES, REFIT_RIDGE = 64, 16, 0.1
EVALUATED_LENGTHS = (4096, 16_384, 65_536, 131_072)  # up to 8 times the length of stage 3


def stage_config(recipe: Recipe, name: str) -> Callable[..., StageConfig]:
    """The `config` of a file with one stage."""
    stages = _stages_config(recipe)

    @functools.wraps(stages)
    def config(*args, **kwargs) -> StageConfig:
        return stages(*args, **kwargs)[name]

    return config


def chain_config(recipe: Recipe) -> Callable[..., HaloConfig]:
    """The `config` of a whole conversion: stages 1, 2 and 3, then long contexts of teacher and student.

    It keeps softmax attention in the published layers, unless a select stage is to choose them anew:
    `--student.softmax-layers None --student.selected-by select`.
    """
    stages = _stages_config(recipe)

    @functools.wraps(stages)
    def config(*args, **kwargs) -> HaloConfig:
        made = stages(*args, **kwargs)
        last = made["finetune"]
        if last.student is not None and last.student.selected_by is None:
            del made["select"]
        folders, out = (str(last.hf_folder), last.teacher_folder), f"{last.run_dir}/report"
        measured = evaluation(*folders, lengths=EVALUATED_LENGTHS, out=out)
        text = HeldOut(made["align"].data.corpus.folder)
        measured = dataclasses.replace(measured, text=text)
        return HaloConfig(run_dir=last.run_dir, stages=tuple(made.values()), evaluation=measured)

    return config


def _stages_config(recipe: Recipe) -> Callable[..., dict[str, StageConfig]]:
    published = StudentConfig(softmax_layers=recipe.softmax_layers)

    def config(
        teacher: str = f"models/{recipe.teacher_name}",
        data: str = "data/fineweb-edu",
        run_dir: str = f"runs/{recipe.name}",
        conversations: str | None = None,
        mixer: str = "lightning",
        recurrent: MixerOptions = AS_PUBLISHED,
        student: StudentConfig = published,
        preset: Literal["published", "upstream_parity", "recommended"] = "published",
    ) -> dict[str, StageConfig]:
        """A published conversion, or one stage of it.

        Args:
          teacher: Hugging Face folder of the teacher.
          data: folder of JSON lines.
          run_dir: where everything goes.
          conversations: folder of JSON lines or Parquet with `messages`, which stage 3 reads in place of `data`.
          mixer: what replaces softmax attention, by its name.
          recurrent: options of that mixer, in all stages.
          student: its plan, in all stages; the exported model has the published logit scale unless it names another.
          preset: how it is run: the published recipe with corrected numerics; as the official code does it, to compare
            with the released models; or with starts in closed form and a fifth of the tokens of stages 1 and 2.
        """
        stage = functools.partial(
            StageConfig,
            run_dir=run_dir,
            teacher=recipe.teacher,
            teacher_folder=teacher,
            mixer=mixer,
            recurrent=recurrent,
        )
        made = _stages(recipe, PRESETS[preset], stage, student, teacher, data, conversations)
        return {stage.name: stage for stage in made}

    return config


def _stages(
    recipe: Recipe,
    preset: Preset,
    stage: Callable[..., StageConfig],
    student: StudentConfig,
    teacher: str,
    text: str,
    conversations: str | None,
) -> tuple[StageConfig, ...]:
    """Stages 1 to 3 and, after the first, the choice of layers and where the preset has one the refit.

    As many layers are chosen as were published, but the released models were chosen with other tasks, and the stages
    after it keep the published layers.
    """
    upstream, ridge = preset.upstream, RIDGE_BATCHES if preset.closed_form else 0
    align_steps, distill_steps = (n // preset.shorten for n in (ALIGN_STEPS, DISTILL_STEPS))
    if upstream and student.tie_embeddings is None:
        student = dataclasses.replace(student, tie_embeddings=True)
    corpus = CorpusConfig(
        folder=f"{text}/prepared",
        # FineWeb-Edu in the paper.
        source=JsonLines(text, ("**/*.jsonl", "**/*.jsonl.gz"), "text"),
        tokenizer=TokenizerFile(teacher),
        block_length=LONG,
        heldout_fraction=0.001,
        seed=0,
    )
    rows = functools.partial(DataConfig, corpus=corpus, seed=0, reset_documents=not upstream)
    training = functools.partial(_training, recipe if upstream else None)
    after = (lambda data, batches: 0) if upstream else tokens_after
    short = rows(context_length=SHORT, sequences_per_step=ALIGN_ROWS, first_token=0)
    # Every layer's lightning mixer against the teacher's attention.
    align = stage(
        name="align",
        student=None,
        method=AlignConfig(ridge_batches=ridge),
        data=short,
        training=training(align_steps, 1e-3, 1e-5, short=True),
        mesh=MeshConfig(),
        seed=0,
    )
    # Passkey retrieval, as long as the longest task of the published selection, and likelihood of text.
    select = dataclasses.replace(
        align,
        name="select",
        method=SelectConfig(
            start_from="align", keep=len(recipe.softmax_layers), rows=128, eps=0.01
        ),
        data=dataclasses.replace(short, context_length=4096, sequences_per_step=4),
        training=None,
    )
    first = after(short, align_steps + ridge)
    refit = dataclasses.replace(
        align,
        name="refit",
        student=student,
        method=RefitConfig(start_from="align", batches=REFIT_BATCHES, ridge=REFIT_RIDGE),
        data=dataclasses.replace(short, first_token=first),
        training=None,
    )
    # KL to the teacher, everything trainable.
    started = DistillConfig(start_from="align")
    if preset.closed_form:
        first = after(refit.data, REFIT_BATCHES)
        started = DistillConfig(start_from="refit", from_student=True)
    distill = dataclasses.replace(
        align,
        name="distill",
        student=student,
        method=started,
        data=rows(context_length=SHORT, sequences_per_step=DISTILL_ROWS, first_token=first),
        training=training(distill_steps, recipe.peak_lr, 1e-5, remat="full", short=True),
    )
    # The next token at 16,384; constant learning rate after the warm-up. Web documents have a thousand tokens, so rows
    # join them; those that fill half a row reach far by themselves and stay apart.
    first = after(distill.data, distill_steps)
    last = rows(context_length=LONG, sequences_per_step=FINETUNE_ROWS, first_token=first)
    if conversations is not None:
        chats = _chats(corpus, conversations)
        last = dataclasses.replace(last, corpus=chats, first_token=0)
    elif not upstream:
        last = dataclasses.replace(last, join_below=LONG // 2)
    finetune = dataclasses.replace(
        align,
        name="finetune",
        student=dataclasses.replace(student, logit_scale=student.logit_scale or recipe.logit_scale),
        method=FinetuneConfig(start_from="distill"),
        data=last,
        training=training(FINETUNE_STEPS, 1e-5, 1e-5, remat="full", accumulate=16),
        export="bfloat16",
    )
    return align, select, *((refit,) if preset.closed_form else ()), distill, finetune


def _chats(corpus: CorpusConfig, folder: str) -> CorpusConfig:
    """Conversations read by the same tokenizer, into rows as long."""
    patterns = ("**/*.jsonl", "**/*.jsonl.gz", "**/*.parquet")
    return dataclasses.replace(
        corpus,
        folder=f"{folder}/prepared",
        # Qwen3's template drops the thoughts of earlier turns.
        source=Conversations(folder, patterns, last_answer_alone=True),
        heldout_fraction=0.01,
    )


def _training(
    official: Recipe | None,
    steps: int,
    peak_lr: float,
    final_lr: float,
    *,
    short: bool = False,
    remat: Literal["none", "full"] = "none",
    accumulate: int = 1,
) -> TrainingConfig:
    """The numbers of a stage, with the numerics of the official code for the recipe `official`, else with our own."""
    return TrainingConfig(
        optimizer=OptimizerConfig(
            peak_lr=peak_lr,
            final_lr=final_lr,
            warmup_steps=50,
            steps=steps,
            weights="float32" if official is None else official.weights,
            first_update_at_zero=official is not None,
        ),
        loop=LoopConfig(
            steps=steps, accumulate=accumulate, checkpoint_every=250, evaluate_every=250
        ),
        dtype="bfloat16",
        remat=remat,
        rounded_tables=short and official is not None,
    )
