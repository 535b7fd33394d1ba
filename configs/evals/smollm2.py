"""What `make smollm2` measures of its models at its end, and the statements that it checks; writes docs/smollm2.md."""

import functools

from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import Document, DocumentFigure, EvaluationConfig
from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.heldout import HeldOutEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.language.samples import SamplesEvaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.model.rope_scaling import YarnScaling

# Up to what the teacher was trained for, and beyond.
WITHIN, BEYOND = (512, 1024, 2048, 4096, 8192), (16_384, 32_768)
LONGEST = BEYOND[-1]
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
their logits with log(t + 512) / log(512) at position t. The text, and so every number, depends a little on what is
installed. Multiples are of 512, the rows of stages 1 and 2. Each statement below is shown whether it holds or not."""

INSTRUCTIONS = (
    "What is the capital of France?",
    "Write a Python function that returns the larger of two numbers.",
    "Explain in one sentence what a hash table is.",
)

# Metrics side by side in the document.
FIGURES = {
    "lengths": ("perplexity", "ruler_mean"),
    "speed": ("prefill_seconds", "decode_seconds", "state_bytes"),
    "training": ("heldout_loss", "heldout_perplexity_gap"),
    "alignment": ("heldout_alignment_error",),
    "fits": ("mixer_fit_error", "mlp_fit_error"),
    "layers": ("selection_importance",),
}


def config(
    run_dir: str = "runs/smollm2_135m",
    teacher: str = "runs/smollm2_135m/teacher",
    long: bool = False,
    controls: bool = False,
    seed: int = 0,
) -> EvaluationConfig:
    """Everything in docs/smollm2.md.

    Args:
      run_dir: of the conversion.
      teacher: its teacher's folder.
      long: measure as much as a GPU does in minutes; else what two CPU cores do in about 40.
      controls: the conversions beside the main one are there too.
      seed: of questions.
    """
    student, data, few = f"{run_dir}/finetune/hf", f"{run_dir}/data", 20 if long else 4
    sources = [
        ModelSource(TEACHER, teacher),
        ModelSource(YARN, teacher, rope_scaling=YarnScaling(LONGEST / WITHIN[-1], WITHIN[-1])),
        ModelSource(HYPENET, student),
        ModelSource(UNSCALED, student, None),
        ModelSource(START, f"{run_dir}/refit/hf"),
        ModelSource(STAGE_2, f"{run_dir}/distill/hf"),
    ]
    if controls:
        sources += [ModelSource(label, f"{run_dir}/{name}/hf") for name, label in CONTROLS.items()]
    compared, rivals = (TEACHER, YARN, HYPENET, UNSCALED), (TEACHER, HYPENET)
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
            "perplexity": PerplexityEvaluator(
                models=compared,
                lengths=WITHIN + BEYOND if long else WITHIN,
                windows=few,
                targets=128,
            ),
            "along": PerplexityEvaluator(
                models=compared, position_length=LONGEST, windows=few if long else 1
            ),
            "ruler": RulerEvaluator(
                models=compared,
                tasks=("niah_single_1", "niah_single_2"),
                lengths=WITHIN + BEYOND if long else WITHIN[:4],
                samples=few,
                cache=f"{run_dir}/questions",
            ),
            "speed": SpeedEvaluator(
                models=rivals,
                lengths=WITHIN + BEYOND,
                longest_prefill=LONGEST if long else WITHIN[-1],
                rounds=3,
            ),
            "samples": SamplesEvaluator(
                models=rivals,
                prompts=("The capital of France is", "def is_prime(n):"),
                instructions=INSTRUCTIONS,
                tokens=48,
            ),
            "conversion": ConversionEvaluator(run_dir=run_dir),
        },
        checks=checks(long=long, controls=controls),
        title="SmolLM2-135M-Instruct to HypeNet",
        lead="A real language model, converted on text that every machine has.",
        document=Document(
            path="docs/smollm2.md",
            title="A real language model",
            description=DESCRIPTION,
            trained_length=512,
            figures=tuple(
                DocumentFigure(path=f"docs/figures/smollm2_{name}.svg", metrics=metrics)
                for name, metrics in FIGURES.items()
            ),
        ),
        seed=seed,
    )


def checks(*, long: bool, controls: bool) -> tuple[Check, ...]:
    """What a budget should reach; text differs between machines, so only that stage 2 improves is required."""
    shown = functools.partial(Check, required=False)
    kl = functools.partial(Check, metric="heldout_kl", length=512)
    needle = functools.partial(shown, metric="ruler_mean", model=HYPENET)
    made = [
        kl(model=STAGE_2, minus=(START, 512), at_most=0.0),
        kl(model=START, at_most=1.45, required=False),
        kl(model=STAGE_2, at_most=1.10, required=False),
        shown(metric="perplexity", model=HYPENET, length=2048, over=(TEACHER, 2048), at_most=1.08),
        needle(length=4096, minus=(TEACHER, 4096), at_least=-0.1),
    ]
    if controls:
        even = (CONTROLS["even_refit"], 512)
        made.append(kl(model=START, minus=even, at_most=0.0, required=False))
    if long:
        made.append(needle(length=16384, minus=(TEACHER, 16384), at_least=0.01))
    return tuple(made)
