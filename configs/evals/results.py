"""The paper's shapes at small scale, from the models of the quickstart:  make results

Needles and perplexity from 1 to 64 times the training length (Figure 8) and time and memory by context (Figure 1);
writes docs/results.md and a page.
"""

import math

from configs.quickstart import CATALOGUE, TRAINED_LENGTH
from hypenet_jax.evals.checks import Bound
from hypenet_jax.evals.config import (
    Claim,
    Document,
    EvaluationConfig,
    HeldOut,
    ModelSource,
    NeedleConfig,
    PerplexityConfig,
    RulerConfig,
    SpeedConfig,
    SweepConfig,
)

LENGTHS = tuple(TRAINED_LENGTH * 2**i for i in range(7))
LONGEST = LENGTHS[-1]
TEACHER, ROPE = "teacher, RoPE", "hybrid, RoPE kept"
LOG, CONSTANT, NONE = "HypeNet, log scaling", "HypeNet, constant", "HypeNet, no scaling"
# What log scaling has reached at the end of the longest context.
FACTOR = math.log(LONGEST - 1 + TRAINED_LENGTH) / math.log(TRAINED_LENGTH)

SCALE = f"log(t + {TRAINED_LENGTH}) / log({TRAINED_LENGTH})"
ABOUT = f"""The models of `make quickstart`: a Qwen3 teacher of four layers, trained on rows of {TRAINED_LENGTH}
tokens, and hybrids converted from it that keep softmax attention in one layer, distilled at {TRAINED_LENGTH} and
finetuned at 512 tokens. Multiples are of {TRAINED_LENGTH}. Four needles of a catalogue of 16 classes with 16 entries
each lie in held-out text and one is asked for at its end. HypeNet is one set of weights with three factors on the
logits of its softmax layer: {SCALE} at position t, the constant {FACTOR:.3f} that this reaches at {LONGEST}, or none.

Made by `make results`, which also writes `runs/results/index.html` and `runs/results/report.jsonl`."""


def claims() -> tuple[Claim, ...]:
    """What the paper says, as numbers of these models."""
    x8, x16, x64 = LENGTHS[3], LENGTHS[4], LONGEST
    return (
        accuracy("the teacher finds needles at 1x", TEACHER, LENGTHS[0], at_least=0.9),
        accuracy("the teacher with RoPE loses them at 8x", TEACHER, x8, at_most=0.5),
        accuracy("a hybrid that keeps RoPE loses them at 16x", ROPE, x16, at_most=0.5),
        accuracy("HypeNet with log scaling keeps them at 16x", LOG, x16, at_least=0.9),
        accuracy("HypeNet with log scaling keeps them at 64x", LOG, x64, at_least=0.9),
        more("log scaling finds more than no scaling at 64x", LOG, NONE, x64),
        more("log scaling finds more than a constant at 64x", LOG, CONSTANT, x64),
        growth("The teacher's perplexity grows from 1x to 64x", TEACHER, at_least=1.5),
        growth("HypeNet's perplexity does not grow", LOG, at_most=1.05),
        speed("HypeNet reads 8K faster", "prefill_speedup", 8192, 1.0),
        speed("HypeNet reads 16K three times as fast", "prefill_speedup", 16384, 3.0),
        speed("HypeNet writes a token after 8K faster", "decode_speedup", 8192, 1.0),
        speed("HypeNet writes one after 64K three times as fast", "decode_speedup", 65536, 3.0),
        Claim(
            "Figure 1: HypeNet remembers 64K in less than a third of the bytes; share of the teacher's",
            Bound("state_bytes", LOG, 65536, at_most=1 / 3),
            over=(TEACHER, 65536),
        ),
    )


def accuracy(text: str, model: str, length: int, **bounds: float) -> Claim:
    return Claim(f"Figure 8: {text}; accuracy", Bound("needle", model, length, **bounds))


def more(text: str, model: str, other: str, length: int) -> Claim:
    bound = Bound("needle", model, length, at_least=0.02)
    return Claim(f"Figure 8: {text}; difference", bound, minus=(other, length))


def growth(text: str, model: str, **bounds: float) -> Claim:
    bound = Bound("perplexity", model, LONGEST, **bounds)
    return Claim(f"{text}; ratio", bound, over=(model, LENGTHS[0]))


def speed(text: str, metric: str, length: int, at_least: float) -> Claim:
    return Claim(f"Figure 1: {text}; ratio", Bound(metric, LOG, length, at_least=at_least))


def config(run_dir: str = "runs/quickstart", out: str = "runs/results") -> EvaluationConfig:
    """Everything in docs/results.md.

    Args:
      run_dir: of the quickstart.
      out: where the page and the rows go.
    """
    student = f"{run_dir}/finetune/hf"
    return EvaluationConfig(
        models=(
            ModelSource(TEACHER, f"{run_dir}/teacher/hf"),
            ModelSource(LOG, student, f"hype {TRAINED_LENGTH}"),
            ModelSource(CONSTANT, student, FACTOR, races=False),
            ModelSource(NONE, student, None, races=False),
            ModelSource(ROPE, f"{run_dir}/rope_finetune/hf", races=False),
        ),
        out=out,
        text=HeldOut(f"{run_dir}/data"),
        needle=NeedleConfig(
            CATALOGUE, LENGTHS, needles=4, sequences=256, long_sequences=32, long_length=512
        ),
        perplexity=PerplexityConfig(LENGTHS, windows=16, targets=64, position_length=2048),
        ruler=RulerConfig(()),
        race=SpeedConfig((1024, 2048, 4096, 8192, 16384, 32768, 65536), longest_prefill=16384),
        sweep=SweepConfig(LOG, constants=(32.0, 128.0, 512.0), by="needle", length=LONGEST),
        claims=claims(),
        document=Document("docs/results.md", "Results", ABOUT, TRAINED_LENGTH),
        conversion=run_dir,
    )
