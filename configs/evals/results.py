"""The paper's shapes at small scale, from the models of the quickstart:  make results

Needles and perplexity from 1 to 64 times the training length (Figure 8) and time and memory by context (Figure 1);
writes docs/results.md and a page.
"""

import dataclasses
import functools
import math
from typing import Any

from configs.quickstart import CATALOGUE, TRAINED_LENGTH
from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.config import Document, DocumentFigure, EvaluationConfig
from hypenet_jax.evals.conversion import ConversionEvaluator
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.model import HeldOut, ModelSource
from hypenet_jax.evals.retrieval.needle import NeedleEvaluator
from hypenet_jax.evals.sweep import SweepEvaluator

LENGTHS = tuple(TRAINED_LENGTH * 2**i for i in range(7))
LONGEST = LENGTHS[-1]
TEACHER, ROPE = "teacher, RoPE", "hybrid, RoPE kept"
LOG, CONSTANT, NONE = "HypeNet, log scaling", "HypeNet, constant", "HypeNet, no scaling"
# What log scaling has reached at the end of the longest context.
FACTOR = math.log(LONGEST - 1 + TRAINED_LENGTH) / math.log(TRAINED_LENGTH)

SCALE = f"log(t + {TRAINED_LENGTH}) / log({TRAINED_LENGTH})"
DESCRIPTION = f"""The models of `make quickstart`: a Qwen3 teacher of four layers, trained on rows of {TRAINED_LENGTH}
tokens, and hybrids converted from it that keep softmax attention in one layer, distilled at {TRAINED_LENGTH} and
finetuned at 512 tokens. Multiples are of {TRAINED_LENGTH}. Four needles of a catalogue of 16 classes with 16 entries
each lie in held-out text and one is asked for at its end. HypeNet is one set of weights with three factors on the
logits of its softmax layer: {SCALE} at position t, the constant {FACTOR:.3f} that this reaches at {LONGEST}, or none.

Made by `make results`, which also writes `runs/results/index.html` and `runs/results/report.jsonl`."""


def checks() -> tuple[Check, ...]:
    """What the paper says, as numbers of these models."""
    x1, x8, x16, x64 = LENGTHS[0], LENGTHS[3], LENGTHS[4], LONGEST
    needle = functools.partial(_shown, "Figure 8: {}; accuracy", "needle")
    more = functools.partial(_shown, "Figure 8: {}; difference", "needle", at_least=0.02)
    growth = functools.partial(_shown, "{}; ratio", "perplexity")
    reads = functools.partial(_shown, "Figure 1: {}; ratio", "prefill_speedup")
    writes = functools.partial(_shown, "Figure 1: {}; ratio", "decode_speedup")
    size = functools.partial(_shown, "Figure 1: {}; share", "state_bytes")
    grows = "The teacher's perplexity grows from 1x to 64x"
    less = "HypeNet's state at 64K takes less than a third of the teacher's bytes"
    return (
        needle("the teacher finds needles at 1x", TEACHER, x1, at_least=0.9),
        needle("the teacher with RoPE loses them at 8x", TEACHER, x8, at_most=0.5),
        needle("a hybrid that keeps RoPE loses them at 16x", ROPE, x16, at_most=0.5),
        needle("HypeNet with log scaling keeps them at 16x", LOG, x16, at_least=0.9),
        needle("HypeNet with log scaling keeps them at 64x", LOG, x64, at_least=0.9),
        more("log scaling finds more than no scaling at 64x", LOG, x64, minus=(NONE, x64)),
        more("log scaling finds more than a constant at 64x", LOG, x64, minus=(CONSTANT, x64)),
        growth(grows, TEACHER, x64, over=(TEACHER, x1), at_least=1.5),
        growth("HypeNet's perplexity does not grow", LOG, x64, over=(LOG, x1), at_most=1.05),
        reads("HypeNet reads 8K faster", LOG, 8192, at_least=1.0),
        reads("HypeNet reads 16K three times as fast", LOG, 16384, at_least=3.0),
        writes("HypeNet writes a token after 8K faster", LOG, 8192, at_least=1.0),
        writes("HypeNet writes one after 64K three times as fast", LOG, 65536, at_least=3.0),
        size(less, LOG, 65536, over=(TEACHER, 65536), at_most=1 / 3),
    )


def _shown(form: str, metric: str, text: str, model: str, length: int, **bounds: Any) -> Check:
    """What does not hold is shown, and the command succeeds."""
    row = {"metric": metric, "model": model, "length": length}
    return Check(**row, text=form.format(text), required=False, **bounds)


def config(run_dir: str = "runs/quickstart", out: str = "runs/results") -> EvaluationConfig:
    """Everything in docs/results.md.

    Args:
      run_dir: of the quickstart.
      out: where the page and the rows go.
    """
    student = f"{run_dir}/finetune/hf"
    needle = NeedleEvaluator(catalogue=CATALOGUE, lengths=LENGTHS)
    return EvaluationConfig(
        models=(
            ModelSource(TEACHER, f"{run_dir}/teacher/hf"),
            ModelSource(LOG, student, f"hype {TRAINED_LENGTH}"),
            ModelSource(CONSTANT, student, FACTOR),
            ModelSource(NONE, student, None),
            ModelSource(ROPE, f"{run_dir}/rope_finetune/hf"),
        ),
        out=out,
        text=HeldOut(f"{run_dir}/data"),
        measurements={
            "needle": needle,
            "perplexity": PerplexityEvaluator(
                lengths=LENGTHS, windows=16, targets=64, position_length=2048
            ),
            "sweep": SweepEvaluator(
                models=(LOG,),
                constants=(32.0, 128.0, 512.0),
                by=dataclasses.replace(needle, lengths=(LONGEST,)),
                metric="needle",
                maximize=True,
            ),
            "speed": SpeedEvaluator(
                models=(TEACHER, LOG),
                lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536),
                longest_prefill=16384,
            ),
            "conversion": ConversionEvaluator(run_dir=run_dir),
        },
        checks=checks(),
        title="Results",
        document=Document(
            path="docs/results.md",
            title="Results",
            description=DESCRIPTION,
            trained_length=TRAINED_LENGTH,
            figures=(
                DocumentFigure(
                    path="docs/figures/needle_and_speed.svg", metrics=("needle", "decode_seconds")
                ),
            ),
        ),
    )
