"""What `make smollm2` measures of its models, and the statements that it checks."""

import dataclasses
import functools

from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import Document, EvaluationConfig
from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.heldout import HeldOutEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.language.samples import SamplesEvaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.model.rope_scaling import YarnScaling

TEACHER_LENGTH = 8192  # it was trained for these
TEACHER, YARN = "SmolLM2", "SmolLM2, YaRN"
HYPENET, UNSCALED = "HypeNet", "HypeNet, no log scaling"
START, STAGE_2 = "HypeNet, refit alone", "HypeNet, stage 2"
# Exported stages of a conversion with controls, by what they are.
CONTROLS = {
    "even_refit": "evenly spaced layers, refit alone",
    "half_refit": "15 layers kept, refit alone",
    "half_distill": "15 layers kept, stage 2",
    "published_distill": "published start, stage 2",
}

DESCRIPTION = """SmolLM2-135M-Instruct (30 layers, Apache-2.0) and HypeNets converted from it by `make smollm2`, on
documentation and source of the installed Python packages. 7 of 30 layers keep softmax attention. Log scaling multiplies
their logits with log(t + 512) / log(512) at position t. Text, and so every number, depends a little on what is installed.
Multiples are of 512, the rows of stages 1 and 2. Each statement below is shown whether it holds or not."""

INSTRUCTIONS = (
    "What is the capital of France?",
    "Write a Python function that returns the larger of two numbers.",
    "Explain in one sentence what a hash table is.",
)


def evaluation(run_dir: str, teacher: str, *, long: bool, controls: bool, seed: int) -> EvaluationConfig:
    """The measurements.

    Args:
      long: as much as a GPU does in minutes; else as two CPU cores do in about half an hour.
      controls: the conversions beside the main one are there too.
    """
    student, data = f"{run_dir}/finetune/hf", f"{run_dir}/data"
    sources = [
        ModelSource(TEACHER, teacher),
        ModelSource(YARN, teacher, rope_scaling=YarnScaling(4.0, TEACHER_LENGTH)),
        ModelSource(HYPENET, student),
        ModelSource(UNSCALED, student, None),
        ModelSource(START, f"{run_dir}/refit/hf"),
        ModelSource(STAGE_2, f"{run_dir}/distill/hf"),
    ]
    if controls:
        sources += [ModelSource(label, f"{run_dir}/{name}/hf") for name, label in CONTROLS.items()]
    compared, few = (TEACHER, YARN, HYPENET, UNSCALED), 4 if not long else 20
    rivals = (TEACHER, HYPENET)
    within, beyond = (512, 1024, 2048, 4096, TEACHER_LENGTH), (2 * TEACHER_LENGTH, 4 * TEACHER_LENGTH)
    perplexity = PerplexityEvaluator(models=compared, lengths=within, windows=few, targets=128)
    needles = RulerEvaluator(
        models=compared,
        tasks=("niah_single_1", "niah_single_2"),
        lengths=within[:4] if not long else within + beyond,
        samples=few,
        cache=f"{run_dir}/questions",
    )
    return EvaluationConfig(
        models=tuple(sources),
        out=f"{run_dir}/report",
        text=HeldOut(data),
        measurements={
            "heldout": HeldOutEvaluator(
                models=tuple(s.label for s in sources if s.label not in (YARN, UNSCALED)),
                folder=data,
                context_length=512,
                rows=32,
                batch=1,
            ),
            "perplexity": perplexity,
            "beyond": dataclasses.replace(perplexity, lengths=beyond, windows=1 if not long else few),
            "ruler": needles,
            "speed": SpeedEvaluator(models=rivals, lengths=within + beyond, longest_prefill=TEACHER_LENGTH, rounds=3),
            "samples": SamplesEvaluator(models=(TEACHER, HYPENET), prompts=("The capital of France is",), instructions=INSTRUCTIONS, tokens=48),
            "conversion": ConversionEvaluator(run_dir=run_dir),
        },
        checks=checks(controls=controls),
        title="SmolLM2-135M-Instruct to HypeNet",
        lead="A real language model, converted on text that every machine has; every number was measured by this run.",
        document=Document(
            path="docs/smollm2.md",
            title="A real language model: SmolLM2-135M-Instruct",
            description=DESCRIPTION,
            trained_length=512,
        ),
        seed=seed,
    )
