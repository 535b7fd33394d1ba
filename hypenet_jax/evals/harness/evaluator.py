"""Tasks of lm-evaluation-harness in a suite of model folders."""

import functools
import importlib.util
import pathlib

from hypenet_jax import runtime
from hypenet_jax.evals import Report
from hypenet_jax.evals.cache import attempt
from hypenet_jax.evals.config import EvaluationConfig, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.quality import Entrant
from hypenet_jax.fingerprint import digest
from hypenet_jax.weights.hf_config import read_json

PRESENTATIONS = (
    Presentation(
        metric="harness/*",
        title="Tasks of lm-evaluation-harness",
        note="Prompts and metrics are those of the harness.",
        kind="list",
    ),
)


def check_harness(config: EvaluationConfig) -> None:
    """Raises ValueError: the harness is asked for but not installed, or the length of a model is not known."""
    if not config.harness.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            f"tasks {list(config.harness.tasks)} need lm-evaluation-harness: pip install 'hypenet-jax[eval]'"
        )
    for one in config.models:
        _max_length(config, one)


def harness_scores(config: EvaluationConfig, one: ModelSource, entrant: Entrant) -> Report:
    """Every task of the harness that the suite asks for."""
    asked, report = config.harness, Report()
    if not asked.tasks:
        return report
    # Only who asks for it has the harness.
    from hypenet_jax.evals.harness.scores import evaluate_with_harness

    length = _max_length(config, one)
    cache = responses_file(config, entrant, length)
    for task in asked.tasks:
        scores = functools.partial(
            evaluate_with_harness,
            entrant.subject,
            entrant.tokenizer,
            [task],
            max_length=length,
            end_ids=entrant.ends,
            task_folders=() if asked.folder is None else (pathlib.Path(asked.folder),),
            num_fewshot=asked.num_fewshot,
            limit=asked.limit,
            chat=asked.chat,
            cache=cache,
            seed=config.seed,
        )
        report += attempt(entrant.subject.name, task, length, scores)
    return report


def responses_file(config: EvaluationConfig, entrant: Entrant, length: int) -> pathlib.Path | None:
    """Where responses of this very model are kept; other weights, tokenizers, settings or code have another file."""
    if config.harness.cache is None:
        return None
    asked = entrant.model_fingerprint, length, config.seed, runtime.code_version()
    return pathlib.Path(config.harness.cache) / f"{entrant.subject.name}-{digest(asked)[:16]}"


def _max_length(config: EvaluationConfig, one: ModelSource) -> int:
    if config.harness.max_length is not None:
        return config.harness.max_length
    path = pathlib.Path(one.folder) / "config.json"
    found = read_json(path).get("max_position_embeddings")
    if found is None:
        raise ValueError(f"{path} has no max_position_embeddings; set harness.max_length")
    return found
