"""Tasks of lm-evaluation-harness as a measurement; needs the extra `eval`."""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Sequence

from hypenet_jax import runtime
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessEvaluator(Evaluator):
    """Tasks of lm-evaluation-harness.

    Attributes:
      tasks: names of tasks or groups; none leaves the harness out.
      folder: YAML files of further tasks; None: there are no others.
      max_length: tokens a model may read, longer contexts lose their first ones; None: the
        `max_position_embeddings` of its config.json.
      num_fewshot: examples before each question; None as each task says.
      limit: documents of each task; None all.
      chat: prompts become conversations by the tokenizer's chat template.
      cache: folder where the responses of each model, told apart by its contents, are kept; None keeps none.
    """

    tasks: tuple[str, ...] = ()
    folder: str | None = None
    max_length: int | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "max_length", "limit")

    @property
    def active(self) -> bool:
        return bool(self.tasks)

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return PRESENTATIONS

    def check(self, models: Sequence[ModelSource]) -> None:
        """Raises ValueError: the harness is not installed, or the length of a model is not known."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError(
                f"tasks {list(self.tasks)} need lm-evaluation-harness: pip install 'hypenet-jax[eval]'"
            )
        for source in models:
            self._length(pathlib.Path(source.folder))

    def run(self, model: EvalModel, session: Session) -> Report:
        # Imported here: only who measures its tasks has the harness.
        from hypenet_jax.evals.harness.scores import evaluate_with_harness

        assert model.tokenizer is not None
        report = Report()
        for task in self.tasks:
            measure = functools.partial(
                evaluate_with_harness,
                model,
                model.tokenizer,
                [task],
                max_length=self._length(model.folder),
                end_ids=model.end_ids,
                task_folders=() if self.folder is None else (pathlib.Path(self.folder),),
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                chat=self.chat,
                cache=self.responses_file(model, session.seed),
                seed=session.seed,
            )
            report += session.keep(task, measure)
        return report

    def responses_file(self, model: EvalModel, seed: int) -> pathlib.Path | None:
        """Where responses of this very model are kept; other weights, tokenizers or settings have another file."""
        if self.cache is None:
            return None
        depends = model.model_fingerprint, self._length(model.folder), seed, runtime.code_version()
        return pathlib.Path(self.cache) / f"{model.name}-{digest(depends)[:16]}"

    def _length(self, folder: pathlib.Path | None) -> int:
        if self.max_length is not None:
            return self.max_length
        assert folder is not None
        length = read_json(folder / "config.json").get("max_position_embeddings")
        if length is None:
            raise ValueError(
                f"{folder / 'config.json'} has no max_position_embeddings; set harness.max_length"
            )
        return length
