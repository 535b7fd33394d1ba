"""What models write after given prompts, to be read by a person."""

import dataclasses
from typing import ClassVar

from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, failure
from hypenet_jax.generation.completions import complete_all
from hypenet_jax.generation.generate import GenerationConfig
from hypenet_jax.generation.text_generator import Completion, TextGenerator
from hypenet_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesEvaluator(Evaluator):
    """Continues texts greedily.

    Attributes:
      prompts: the texts.
      tokens: most tokens of a continuation.
    """

    prompts: tuple[str, ...] = ()
    tokens: int = 32

    needs: ClassVar = ("prompts",)
    shown: ClassVar = (
        Presentation(metric="sample", title="What the models write", unit="count", kind="texts"),
    )

    def __post_init__(self) -> None:
        check_positive(self, "tokens")

    def run(self, model: EvalModel, session: Session) -> Report:
        """Rows "sample": the task is the prompt, the label its continuation, the value how many tokens that has."""
        return session.keep("samples", lambda: self._continued(model))

    def _continued(self, model: EvalModel) -> Report:
        assert model.tokenizer is not None
        assert isinstance(model.decoder, Decoder)
        config = GenerationConfig(max_new_tokens=self.tokens, stop_tokens=model.end_ids)
        generator = TextGenerator(
            decoder=model.decoder, params=model.params, tokenizer=model.tokenizer, config=config
        )
        done = complete_all(generator, self.prompts)
        return Report(tuple(_row(model.name, one) for one in done))


def _row(model: str, done: Completion) -> Row:
    if done.error is not None:
        return failure(model, "samples", done.error)
    return Row("sample", model, float(done.tokens), 1, label=done.text, task=done.prompt)
