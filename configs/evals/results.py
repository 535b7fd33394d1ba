"""The paper's shapes at small scale, from the models of the quickstart:  make results

Needles and perplexity from 1 to 64 times the training length (Figure 8) and time and memory by context (Figure 1);
writes docs/results.md and a page.
"""

import math

from configs.quickstart import CATALOGUE, TRAINED_LENGTH
from hypenet_jax.evals.config import (
    Bound,
    Claim,
    Document,
    HeldOut,
    ModelFolder,
    NeedleConfig,
    PerplexityConfig,
    RaceConfig,
    RulerConfig,
    SuiteConfig,
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

    def needle(
        text: str, model: str, length: int, minus: str | None = None, **bounds: float
    ) -> Claim:
        other = None if minus is None else (minus, length)
        return Claim(text, Bound("needle", model, length, **bounds), minus=other)

    def growth(text: str, model: str, **bounds: float) -> Claim:
        return Claim(text, Bound("perplexity", model, LONGEST, **bounds), over=(model, LENGTHS[0]))

    return (
        needle(
            "The teacher finds needles at its training length", TEACHER, LENGTHS[0], at_least=0.9
        ),
        needle(
            "Figure 8: the teacher with RoPE loses them at 8x", TEACHER, LENGTHS[3], at_most=0.5
        ),
        needle(
            "Figure 8: a hybrid that keeps RoPE loses them at 16x", ROPE, LENGTHS[4], at_most=0.5
        ),
        needle(
            "Figure 8: HypeNet with log scaling keeps them at 16x", LOG, LENGTHS[4], at_least=0.9
        ),
        needle("Figure 8: HypeNet with log scaling keeps them at 64x", LOG, LONGEST, at_least=0.9),
        needle("Figure 8: at 64x, log scaling minus no scaling", LOG, LONGEST, NONE, at_least=0.02),
        needle(
            "Figure 8: at 64x, log scaling minus a constant", LOG, LONGEST, CONSTANT, at_least=0.02
        ),
        growth("The teacher's perplexity at 64x over that at 1x", TEACHER, at_least=1.5),
        growth("HypeNet's perplexity at 64x over that at 1x", LOG, at_most=1.05),
        speed("Figure 1: HypeNet reads 8K faster", "prefill_speedup", 8192, 1.0),
        speed("Figure 1: HypeNet reads 16K three times as fast", "prefill_speedup", 16384, 3.0),
        speed("Figure 1: HypeNet writes a token after 8K faster", "decode_speedup", 8192, 1.0),
        speed(
            "Figure 1: HypeNet writes a token after 64K three times as fast",
            "decode_speedup",
            65536,
            3.0,
        ),
        Claim(
            "Figure 1: HypeNet's state at 64K over the teacher's",
            Bound("state_bytes", LOG, 65536, at_most=1 / 3),
            over=(TEACHER, 65536),
        ),
    )


def speed(text: str, metric: str, length: int, at_least: float) -> Claim:
    return Claim(text, Bound(metric, LOG, length, at_least=at_least))


def config(run_dir: str = "runs/quickstart", out: str = "runs/results") -> SuiteConfig:
    """Everything in docs/results.md.

    Args:
      run_dir: of the quickstart.
      out: where the page and the rows go.
    """
    student = f"{run_dir}/finetune/hf"
    return SuiteConfig(
        models=(
            ModelFolder(TEACHER, f"{run_dir}/teacher/hf"),
            ModelFolder(LOG, student, f"hype {TRAINED_LENGTH}"),
            ModelFolder(CONSTANT, student, FACTOR, races=False),
            ModelFolder(NONE, student, None, races=False),
            ModelFolder(ROPE, f"{run_dir}/rope_finetune/hf", races=False),
        ),
        out=out,
        text=HeldOut(f"{run_dir}/data"),
        needle=NeedleConfig(
            CATALOGUE, LENGTHS, needles=4, sequences=256, long_sequences=32, long_length=512
        ),
        perplexity=PerplexityConfig(LENGTHS, windows=16, targets=64, position_length=2048),
        ruler=RulerConfig(()),
        race=RaceConfig((1024, 2048, 4096, 8192, 16384, 32768, 65536), longest_prefill=16384),
        sweep=SweepConfig(LOG, constants=(32.0, 128.0, 512.0), by="needle", length=LONGEST),
        claims=claims(),
        document=Document("docs/results.md", "Results", ABOUT, TRAINED_LENGTH),
        conversion=run_dir,
    )
