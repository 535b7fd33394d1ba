"""A whole conversion in a few steps each: text, tokenizer, teacher of two layers, and the stages in order."""

import dataclasses
import pathlib

from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.sources import TextFiles
from hypenet_jax.data.synthetic import Catalogue, NeedleRows
from hypenet_jax.data.tokenizer import TrainedTokenizer
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.heldout import HeldOutEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.language.samples import SamplesEvaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.method import Method
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.layers import Initialization
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.testing import tiny_teacher
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

VOCABULARY, LENGTH, LONG, ROWS = 280, 16, 32, 8
CATALOGUE = Catalogue(first_id=VOCABULARY, classes=4, entries=4)
NEEDLES = NeedleRows(CATALOGUE, 0.5, min_needles=1, max_needles=2, queries=2)
TEACHER = tiny_teacher(VOCABULARY + CATALOGUE.num_ids)


def write_text(folder: pathlib.Path) -> pathlib.Path:
    """Thirty small files that repeat themselves."""
    folder.mkdir()
    for i in range(30):
        lines = [f"the {word} of file {i} is line {n}\n" for n in range(12) for word in "abc"]
        (folder / f"{i}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def chain(text: pathlib.Path, run_dir: pathlib.Path, teacher: ModelConfig = TEACHER) -> HaloConfig:
    """Teacher, align, select, distill, finetune; two or three steps each."""
    tokenizer = TrainedTokenizer(VOCABULARY, CATALOGUE.token_names())
    source = TextFiles(str(text), ("*.txt",))
    corpus = CorpusConfig(
        folder=f"{run_dir}/data",
        source=source,
        tokenizer=tokenizer,
        block_length=LONG,
        heldout_fraction=0.3,
        seed=0,
    )
    teacher_folder = f"{run_dir}/teacher/hf"
    selected = StudentConfig(selected_by="select", logit_scale=16.0)

    def data(length: int, first: int) -> DataConfig:
        return DataConfig(
            corpus=corpus,
            context_length=length,
            sequences_per_step=ROWS,
            first_token=first,
            seed=0,
            needles=NEEDLES,
        )

    def run(
        method: Method, name: str, data: DataConfig, student=None, steps=2, export=None
    ) -> StageConfig:
        training = TrainingConfig(
            optimizer=OptimizerConfig(peak_lr=1e-2, final_lr=1e-3, warmup_steps=1, steps=8),
            loop=LoopConfig(steps=steps, accumulate=1, checkpoint_every=8),
            dtype="float32",
        )
        return StageConfig(
            name=name,
            run_dir=str(run_dir),
            teacher=teacher,
            teacher_folder=None if name == "teacher" else teacher_folder,
            student=student,
            method=method,
            data=data,
            training=None if name == "select" else training,
            mesh=MeshConfig(),
            seed=0,
            export=export,
        )

    select = SelectConfig(start_from="align", keep=1, rows=16, eps=0.01, resamples=50)
    start = FinetuneConfig(start_from=None, start=Initialization(std=0.2, embedding_std=0.5))
    first = data(LENGTH, 0)
    second = data(LENGTH, tokens_after(first, 3))
    third = data(LENGTH, tokens_after(second, 2))
    last = data(LONG, tokens_after(third, 2))
    return HaloConfig(
        run_dir=str(run_dir),
        stages=(
            run(start, "teacher", first, steps=3, export="float32"),
            run(AlignConfig(), "align", second),
            run(select, "select", second),
            run(DistillConfig(start_from="align"), "distill", third, selected),
            run(FinetuneConfig(start_from="distill"), "finetune", last, selected, export="float32"),
        ),
    )


def evaluation(run_dir: pathlib.Path) -> EvaluationConfig:
    """What is measured of its models: teacher, student, and the student with the scale that it was exported with."""
    student = f"{run_dir}/finetune/hf"
    needle = NeedleEvaluator(
        models=("teacher", "student"),
        catalogue=CATALOGUE,
        lengths=(16, 32),
        needles=2,
        sequences=8,
        long_sequences=8,
    )
    return EvaluationConfig(
        models=(
            ModelSource("teacher", f"{run_dir}/teacher/hf"),
            ModelSource("student", student, None),
            ModelSource("scaled", student),
        ),
        out=f"{run_dir}/report",
        text=HeldOut(f"{run_dir}/data"),
        measurements={
            "needle": needle,
            "needle_scaled": dataclasses.replace(needle, models=("scaled",), lengths=(16,)),
            "perplexity": PerplexityEvaluator(
                models=("teacher", "student"), lengths=(32,), windows=8, targets=8
            ),
            "heldout": HeldOutEvaluator(
                folder=f"{run_dir}/data", context_length=LENGTH, rows=16, batch=8
            ),
            "speed": SpeedEvaluator(models=("teacher", "student"), lengths=(64,)),
            "conversion": ConversionEvaluator(run_dir=str(run_dir)),
            "samples": SamplesEvaluator(models=("student",), prompts=("the a of file",), tokens=4),
        },
        checks=(Check(metric="heldout_top1", model="student", at_least=0.0),),
    )
