"""What is measured of a model folder by default:  python -m launch.evaluate MODEL [--teacher FOLDER] ...

Perplexity of the same tokens after more and more context, the tasks in the manner of RULER, time and memory.
"""

import dataclasses
import pathlib
from typing import Literal

from hypenet_jax.data.sources import JsonLines, TextFiles, standard_library
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.efficiency.speed import SpeedEvaluator
from hypenet_jax.evals.evaluator import Evaluator
from hypenet_jax.evals.harness.evaluator import HarnessEvaluator
from hypenet_jax.evals.language.perplexity import PerplexityEvaluator
from hypenet_jax.evals.language.samples import SamplesEvaluator
from hypenet_jax.evals.model import ModelSource
from hypenet_jax.evals.retrieval.passkey import PasskeyEvaluator
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.evals.ruler.tasks import TASKS
from hypenet_jax.evals.sweep import SweepEvaluator


def config(
    model: str,
    teacher: str | None = None,
    text: str | None = None,
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768),
    tasks: tuple[str, ...] = tuple(TASKS),
    sweep_by: Literal["perplexity", "ruler"] = "perplexity",
    out: str = "runs/evaluation",
) -> EvaluationConfig:
    """Long contexts of one model, and of its teacher for comparison.

    Passkeys, the harness, the sweep and samples are left out until they are given lengths, tasks, constants or prompts.

    Args:
      model: Hugging Face folder, or org/name in the local cache.
      teacher: folder or name of the model that it is compared with.
      text: folder of .txt, .md or .jsonl (field "text") files; None reads the running Python's standard library.
      lengths: context lengths of every measurement; up to a million.
      tasks: in the manner of RULER.
      sweep_by: what decides on the logit scale where --sweep.constants are given, at 8192 tokens.
      out: where the report goes; questions are kept below it.
    """
    folders = {"teacher": teacher, "model": model}
    ruler = RulerEvaluator(tasks=tasks, lengths=lengths, cache=f"{out}/questions")
    sweeps = {
        "perplexity": SweepEvaluator(by=PerplexityEvaluator(lengths=(8192,)), metric="perplexity"),
        "ruler": SweepEvaluator(
            by=dataclasses.replace(ruler, lengths=(8192,)), metric="ruler_mean", maximize=True
        ),
    }
    measurements: dict[str, Evaluator] = {
        "perplexity": PerplexityEvaluator(
            lengths=lengths, position_length=max(lengths, default=None)
        ),
        "ruler": ruler,
        "speed": SpeedEvaluator(lengths=lengths),
        "passkey": PasskeyEvaluator(),
        "harness": HarnessEvaluator(),
        "sweep": dataclasses.replace(sweeps[sweep_by], models=("model",)),
        "samples": SamplesEvaluator(models=("model",)),
    }
    return EvaluationConfig(
        models=tuple(ModelSource(name, path) for name, path in folders.items() if path is not None),
        out=out,
        text=standard_library() if text is None else source_of(text),
        measurements=measurements,
    )


def source_of(folder: str) -> TextFiles | JsonLines:
    """JSON lines where the folder holds such files, else plain text."""
    if any(pathlib.Path(folder).rglob("*.jsonl*")):
        return JsonLines(folder, ("**/*.jsonl", "**/*.jsonl.gz"), "text")
    return TextFiles(folder, ("**/*.txt", "**/*.md"))
