"""A whole conversion in minutes on two CPU cores:  python -m launch.halo configs/quickstart.py

A small Qwen3 teacher is trained on the running interpreter's standard library and saved as a Hugging Face folder;
from there on it goes as with any downloaded Qwen3. The retrieval task is synthetic: entries of a catalogue are planted
in the text and asked for at its end. It was chosen because a tiny model learns it in seconds.
"""

import dataclasses
import functools
from typing import Any, Literal

from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig, TrainingConfig
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after
from hypenet_jax.data.sources import standard_library
from hypenet_jax.data.synthetic import Catalogue, NeedleRows
from hypenet_jax.data.tokenizer import TokenizerFile, TrainedTokenizer
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
from hypenet_jax.model.config import MixerOptions, ModelConfig
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

TEXT_VOCABULARY = 1024  # a bigger one only makes the logits dearer
CATALOGUE = Catalogue(first_id=TEXT_VOCABULARY)
SHORT_LENGTH = 64  # where the retrieval head forms
TRAINED_LENGTH = 128  # of the teacher, stages 1 and 2
LONG_LENGTH = 512  # of stage 3
# Of the evaluation: up to 32 times what the teacher saw.
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TEACHER_MODEL, HYPENET, UNSCALED = "teacher", "HypeNet", "HypeNet, no log scaling"
ROPE, RECURRENT, STAGE_2 = "RoPE kept", "recurrent only", "HypeNet, stage 2"

# About 0.5 M parameters: a step of 3,072 tokens takes a fifth of a second on two cores. Many heads and narrow layers
# give attention the share of the work at 8K that it has in large models at longer contexts.
TEACHER = ModelConfig(
    vocab_size=TEXT_VOCABULARY + CATALOGUE.num_ids,
    d_model=96,
    d_mlp=144,
    mixers=(SoftmaxSpec(num_heads=8, num_kv_heads=4, head_dim=16, rope_theta=1e4),) * 4,
    tie_embeddings=True,
)
# Sharp attention and quiet outputs at the start: the retrieval head forms within a hundred steps.
START = Initialization(std=0.1, embedding_std=0.1, output_gain=0.1, query_norm=5.0)

STEPS = {
    "teacher_short": 120,  # retrieval is at 98 % after them
    "teacher": 600,
    "align": 400,
    "distill": 200,
    "finetune": 300,
    "recurrent_distill": 100,  # what it cannot do, more steps do not bring
}


def config(
    run_dir: str = "runs/quickstart",
    seed: int = 0,
    data: str = standard_library().folder,
    teacher: str | None = None,
) -> HaloConfig:
    """A whole conversion of a small teacher on two CPU cores.

    Args:
      run_dir: where everything goes.
      seed: of the models and of the order of the data.
      data: folder of Python files to read.
      teacher: Hugging Face folder of a teacher that an earlier quickstart made; None trains one.
    """
    own = TrainedTokenizer(TEXT_VOCABULARY, CATALOGUE.token_names())
    corpus = CorpusConfig(
        folder=f"{run_dir}/data",
        source=dataclasses.replace(standard_library(), folder=data),
        tokenizer=TokenizerFile(teacher) if teacher else own,
        block_length=LONG_LENGTH,
        heldout_fraction=0.05,
        seed=0,
    )
    texts, teacher_folder = texts_of(corpus, seed), teacher or f"{run_dir}/teacher/hf"

    def stage(
        name: str,
        method: Method,
        student: StudentConfig | None = None,
        rates: tuple[float, float] | None = None,
        export: Literal["float32"] | None = None,
        **optimizer: Any,
    ) -> StageConfig:
        # A control reads and trains as the student does in the stage that its name ends with.
        makes_teacher = not method.reads_teacher and student is None
        return StageConfig(
            name=name,
            run_dir=run_dir,
            teacher=TEACHER,
            teacher_folder=None if makes_teacher else teacher_folder,
            student=student,
            method=method,
            data=texts[name.removeprefix("rope_").removeprefix("recurrent_")],
            training=rates and training(STEPS[name.removeprefix("rope_")], *rates, **optimizer),
            mesh=MeshConfig(),
            seed=seed,
            export=export,
        )

    scratch = FinetuneConfig(start_from=None, start=START)
    select = SelectConfig(start_from="align", keep=1, rows=96, eps=0.01)
    distill, finetune = DistillConfig(start_from="align"), FinetuneConfig(start_from="distill")
    from_short, from_rope = (
        FinetuneConfig(start_from=n) for n in ("teacher_short", "rope_distill")
    )
    student = StudentConfig(selected_by="select", logit_scale=float(TRAINED_LENGTH))
    with_rope = StudentConfig(selected_by="select", softmax=MixerOptions(rope=True))
    recurrent = StudentConfig(softmax_layers=())
    # First and last learning rates for a training of minutes; the published ones are meant for 20,000 steps.
    to_align, to_tune = (1e-3, 1e-5), (2e-3, 5e-5)
    made = (
        stage("teacher_short", scratch, rates=(3e-3, 3e-3), warmup_steps=50, weight_decay=0.1),
        stage("teacher", from_short, None, (1.8e-3, 1e-4), "float32", weight_decay=0.1),
    )
    converted = (
        stage("align", AlignConfig(), rates=to_align),
        stage("select", select),
        stage("distill", distill, student, to_align, "float32"),
        stage("finetune", finetune, student, to_tune, "float32"),
        stage("rope_distill", distill, with_rope, to_align),
        stage("rope_finetune", from_rope, with_rope, to_tune, "float32"),
        stage("recurrent_distill", distill, recurrent, to_align, "float32"),
    )
    return HaloConfig(
        run_dir=run_dir,
        stages=converted if teacher else made + converted,
        evaluation=evaluation(run_dir, teacher_folder, seed),
    )


def training(steps: int, peak_lr: float, final_lr: float, **optimizer: Any) -> TrainingConfig:
    rates = {"peak_lr": peak_lr, "final_lr": final_lr, "warmup_steps": 20, "weight_decay": 0.0}
    return TrainingConfig(
        optimizer=OptimizerConfig(**{**rates, **optimizer}, steps=steps),
        loop=LoopConfig(steps=steps, accumulate=1, checkpoint_every=50),
        dtype="float32",
    )


def texts_of(corpus: CorpusConfig, seed: int) -> dict[str, DataConfig]:
    """What each stage reads, one after another along the text; half the rows or more carry needles."""
    texts, first = {}, 0
    # Tokens of a row, rows of a step, share of rows with needles, and questions in one.
    for name, length, rows, share, queries in (
        ("teacher_short", SHORT_LENGTH, 32, 0.75, 8),
        ("teacher", TRAINED_LENGTH, 24, 0.75, 8),
        ("align", TRAINED_LENGTH, 16, 0.5, 8),
        ("distill", TRAINED_LENGTH, 16, 0.5, 8),
        ("finetune", LONG_LENGTH, 4, 1.0, 32),
    ):
        texts[name] = DataConfig(
            corpus=corpus,
            context_length=length,
            sequences_per_step=rows,
            first_token=first,
            seed=seed,
            needles=NeedleRows(CATALOGUE, share, min_needles=4, max_needles=8, queries=queries),
        )
        first = tokens_after(texts[name], STEPS[name])
    return {**texts, "select": texts["align"]}


def evaluation(run_dir: str, teacher: str, seed: int) -> EvaluationConfig:
    """What is measured at the end, and what must hold for the command to succeed."""
    student, data = f"{run_dir}/finetune/hf", f"{run_dir}/data"
    compared = (TEACHER_MODEL, HYPENET, UNSCALED, ROPE, RECURRENT)
    needle = NeedleEvaluator(models=compared, catalogue=CATALOGUE, lengths=LENGTHS)
    return EvaluationConfig(
        models=(
            ModelSource(TEACHER_MODEL, teacher),
            ModelSource(HYPENET, student, f"hype {TRAINED_LENGTH}"),
            ModelSource(UNSCALED, student, None),
            ModelSource(ROPE, f"{run_dir}/rope_finetune/hf", None),
            ModelSource(RECURRENT, f"{run_dir}/recurrent_distill/hf"),
            ModelSource(STAGE_2, f"{run_dir}/distill/hf", None),
        ),
        out=f"{run_dir}/report",
        text=HeldOut(data),
        measurements={
            "needle": needle,
            "needle_stage_2": dataclasses.replace(
                needle, models=(STAGE_2,), lengths=(TRAINED_LENGTH,)
            ),
            "perplexity": PerplexityEvaluator(
                models=compared, lengths=LENGTHS, windows=16, targets=64
            ),
            "heldout": HeldOutEvaluator(folder=data, context_length=TRAINED_LENGTH, rows=192),
            "speed": SpeedEvaluator(
                models=(TEACHER_MODEL, HYPENET), lengths=(1024, 2048, 4096, 8192)
            ),
            "conversion": ConversionEvaluator(run_dir=run_dir),
            "samples": SamplesEvaluator(
                models=(HYPENET,), prompts=("def __init__(self", "import "), tokens=24
            ),
        },
        checks=checks(),
        title="From Qwen3 to HypeNet",
        lead="A small Qwen3 teacher, its HypeNet student and controls; every number was measured by this run.",
        seed=seed,
    )


def checks() -> tuple[Check, ...]:
    """The bounds; speed depends on what else the machine does, so it does not decide."""
    needle = functools.partial(Check, metric="needle")
    faster = functools.partial(Check, model=HYPENET, length=8192, required=False)
    return (
        needle(model=TEACHER_MODEL, length=TRAINED_LENGTH, at_least=0.97),
        Check(metric="alignment_error_drop", model="align", at_least=0.5),
        Check(metric="alignment_error_worst", model="align", at_most=0.45),
        Check(metric="heldout_kl", model=STAGE_2, length=TRAINED_LENGTH, at_most=0.12),
        Check(metric="perplexity_gap", model=STAGE_2, at_most=0.15),
        needle(model=RECURRENT, length=TRAINED_LENGTH, at_most=0.75),
        needle(model=HYPENET, length=2048, at_least=0.9),
        needle(model=UNSCALED, length=2048, at_least=0.9),
        needle(model=TEACHER_MODEL, length=2048, at_most=0.4),
        needle(model=ROPE, length=2048, at_most=0.45),
        needle(model=HYPENET, length=4096, minus=(UNSCALED, 4096), at_least=0.0),
        faster(metric="prefill_speedup", at_least=3.0),
        faster(metric="decode_speedup", at_least=2.0),
    )
