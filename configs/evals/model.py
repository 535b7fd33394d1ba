"""What is measured of a model folder by default:  python -m launch.evaluate MODEL [--teacher FOLDER] ...

Perplexity of the same tokens after more and more context, the tasks in the manner of RULER, time and memory.
"""

import pathlib

from hypenet_jax.data.sources import JsonLines, TextFiles, standard_library
from hypenet_jax.evals.config import (
    EvaluationConfig,
    ModelSource,
    PerplexityConfig,
    RulerConfig,
    SpeedConfig,
)

TASKS = (
    *("niah_single_1", "niah_single_2", "niah_single_3"),
    *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"),
)


def config(
    model: str,
    teacher: str | None = None,
    text: str | None = None,
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768),
    tasks: tuple[str, ...] = TASKS,
    out: str = "runs/evaluation",
) -> EvaluationConfig:
    """Long contexts of one model, and of its teacher for comparison.

    Args:
      model: Hugging Face folder.
      teacher: Hugging Face folder of the model that it is compared with.
      text: folder of .txt, .md or .jsonl (field "text") files; None reads the running Python's standard library.
      lengths: context lengths of every measurement; up to a million.
      tasks: in the manner of RULER.
      out: where the report goes; questions are kept below it.
    """
    folders = {"teacher": teacher, "model": model}
    models = tuple(ModelSource(label, path) for label, path in folders.items() if path is not None)
    return EvaluationConfig(
        models=models,
        out=out,
        text=standard_library() if text is None else source_of(text),
        perplexity=PerplexityConfig(lengths, position_length=max(lengths, default=None)),
        ruler=RulerConfig(tasks, lengths, cache=f"{out}/questions"),
        race=SpeedConfig(lengths),
    )


def source_of(folder: str) -> TextFiles | JsonLines:
    """JSON lines where the folder holds such files, else plain text."""
    if any(pathlib.Path(folder).rglob("*.jsonl*")):
        return JsonLines(folder, ("**/*.jsonl", "**/*.jsonl.gz"), "text")
    return TextFiles(folder, ("**/*.txt", "**/*.md"))
