"""What models write after given prompts, and answer to instructions, to be read by a person."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from hypenet_jax.data.chat import Message, chat_template
from hypenet_jax.data.tokenizer import load_tokenizer
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, failure
from hypenet_jax.generation.completions import complete_all
from hypenet_jax.generation.generate import GenerationConfig
from hypenet_jax.generation.text_generator import Completion, TextGenerator
from hypenet_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesEvaluator(Evaluator):
    """Continues texts greedily, and answers instructions.

    Attributes:
      prompts: the texts; special tokens in them are read as text.
      instructions: each is a conversation of its own, as the chat template of the tokenizer renders it.
      tokens: most tokens of a continuation or an answer.
    """

    prompts: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    tokens: int = 32

    shown: ClassVar = (
        Presentation(metric="sample", title="What the models write", unit="count", kind="texts"),
        Presentation(metric="answer", title="What the models answer", unit="count", kind="answers"),
    )

    def __post_init__(self) -> None:
        check_positive(self, "tokens")

    @property
    def active(self) -> bool:
        return bool(self.prompts or self.instructions)

    def check(self, models: Sequence[ModelSource]) -> None:
        """Refuses instructions to a model whose tokenizer has no chat template, or one that cannot read them."""
        for source in models if self.instructions else ():
            try:
                template = chat_template(load_tokenizer(source.folder))
                for instruction in self.instructions:
                    template.render(_asked(instruction), add_generation_prompt=True)
            except ValueError as error:
                raise ValueError(f"{source.label!r}: {error}") from error

    def run(self, model: EvalModel, session: Session) -> Report:
        """Rows "sample" and "answer": the task is the prompt or the instruction, the label what the model wrote, the
        value how many tokens that has."""
        assert model.tokenizer is not None
        session = session.part(f"chat template {model.tokenizer.config.get('chat_template')}")
        return session.keep("samples", lambda: self._written(model))

    def _written(self, model: EvalModel) -> Report:
        assert model.tokenizer is not None
        assert isinstance(model.decoder, Decoder)
        config = GenerationConfig(max_new_tokens=self.tokens, stop_tokens=model.end_ids)
        generator = TextGenerator(
            decoder=model.decoder, params=model.params, tokenizer=model.tokenizer, config=config
        )
        done = complete_all(generator, [*self.prompts, *map(_asked, self.instructions)])
        shown = [("sample", prompt) for prompt in self.prompts]
        shown += [("answer", instruction) for instruction in self.instructions]
        rows = (
            _row(metric, model.name, text, one)
            for (metric, text), one in zip(shown, done, strict=True)
        )
        return Report(tuple(rows))


def _asked(instruction: str) -> tuple[Message, ...]:
    """The conversation that its answer follows."""
    return ({"role": "user", "content": instruction},)


def _row(metric: str, model: str, prompt: str, done: Completion) -> Row:
    if done.error is not None:
        return failure(model, "samples", done.error)
    return Row(metric, model, float(done.tokens), 1, label=done.text, task=prompt)
