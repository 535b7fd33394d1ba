"""Retrieval with ordinary words, for pretrained models: a code is stated somewhere and asked for at the end.

    ... The access code of Maria is 48213. ... The access code of Maria is 48213

The answer counts when every one of its tokens is the likeliest, the ones before it given.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from hypenet_jax import axes
from hypenet_jax.axes import Params, Tokens
from hypenet_jax.data.tokenizer import Tokenizer
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.predictions import top_tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, share
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, batches_of
from hypenet_jax.generation.model import Model
from hypenet_jax.sharding import constrain

NAMES = (
    "Maria", "Ahmed", "Ingrid", "Kenji", "Olga", "Pedro", "Fatima", "Lars",
    "Mei", "Tomas", "Amina", "Ravi", "Helen", "Yusuf", "Clara", "Igor",
)  # fmt: skip
STATEMENT = "\nThe access code of {name} is {code}.\n"
QUESTION = "\nThe access code of {name} is"
CODES = (10_000, 100_000)


PRESENTATIONS = (
    Presentation(
        metric="passkey",
        title="Finding a code stated in words",
        note="Share of texts at whose end the model gives a code stated somewhere in them. {counts} texts per "
        "point; whiskers are 95\u00a0% intervals (Wilson).",
        unit="share",
        label="accuracy",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasskeyEvaluator(Evaluator):
    """Codes stated in words, hidden in the text.

    Attributes:
      lengths: context lengths.
      rows: texts per length.
      statements: codes stated in each, one of them asked for.
    """

    lengths: tuple[int, ...] = ()
    rows: int = 64
    statements: int = 4

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "rows", "statements")

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return PRESENTATIONS

    def run(self, model: EvalModel, session: Session) -> Report:
        report = Report()
        for length in self.lengths:
            report += session.keep(
                "passkey", functools.partial(self._measure, model, length, session.seed), length
            )
        return report

    def _measure(self, model: EvalModel, length: int, seed: int) -> Report:
        assert model.tokenizer is not None
        report = passkey_retrieval(
            model,
            model.tokenizer,
            model.text,
            length=length,
            num_rows=self.rows,
            num_statements=self.statements,
            seed=seed,
        )
        return Report(tuple(dataclasses.replace(row, metric="passkey") for row in report.rows))


def passkey_retrieval(
    model: EvalModel,
    tokenizer: Tokenizer,
    text: Int[np.ndarray, " n"],
    *,
    length: int,
    num_rows: int,
    num_statements: int,
    seed: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Report:
    """Share of rows whose code is found.

    Args:
      tokenizer: of the model.
      text: held-out tokens that the statements are hidden in.
      length: tokens per row, question and answer included.
      num_statements: codes stated in each row, of different names; one is asked for.
      seed: decides the rows, the same for every model.
    Returns:
      One row "retrieval".
    Raises:
      ValueError: the statements do not fit the length, or there is not enough text.
    """
    made = [
        _row(tokenizer, text, length, num_statements, np.random.default_rng((seed, length, i)))
        for i in range(num_rows)
    ]
    tokens = np.stack([row for row, _ in made])
    answers = np.asarray([answer for _, answer in made])
    hits = start = 0
    for batch, real in batches_of(tokens, tokens_per_batch):
        lengths = np.resize(answers[start : start + real], len(batch)).astype(np.int32)
        found = _found(model.decoder, model.params, batch, lengths, int(answers.max()))
        hits += int(np.sum(np.asarray(found)[:real]))
        start += real
    return Report().add(share("retrieval", model.name, hits, num_rows, length=length))


def _row(
    tokenizer: Tokenizer,
    text: Int[np.ndarray, " n"],
    length: int,
    num_statements: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " T"], int]:
    """Tokens of one row, and how many of its last ones are the answer."""
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:num_statements]]
    codes = [str(code) for code in rng.integers(*CODES, size=num_statements)]
    stated = tokenizer.encode_all(
        [STATEMENT.format(name=n, code=c) for n, c in zip(names, codes, strict=True)]
    )
    question = QUESTION.format(name=names[0])
    asked, whole = tokenizer.encode_all([question, f"{question} {codes[0]}"])
    # Tokens of the answer: what the whole has beyond its longest common start with the question.
    shared = int(np.argmin(np.append(asked == whole[: len(asked)], False)))
    room = length - sum(map(len, stated)) - len(whole)
    if room < num_statements + 1 or len(text) < room:
        raise ValueError(
            f"{num_statements} statements and a question leave {room} of {length} tokens for text, and "
            f"{len(text)} are there; state fewer codes, lengthen the rows or give more text"
        )
    start = int(rng.integers(len(text) - room + 1))
    hay = np.split(text[start : start + room], np.sort(rng.integers(0, room, num_statements)))
    order = rng.permutation(num_statements)
    pieces = [hay[0]]
    for gap, i in zip(hay[1:], order, strict=True):
        pieces += [stated[i], gap]
    return np.concatenate([*pieces, whole]).astype(np.int32), len(whole) - shared


@functools.partial(jax.jit, static_argnums=(0, 4))
def _found(
    decoder: Model, params: Params, tokens: Tokens, answers: Int[Array, "B"], longest: int
) -> Bool[Array, "B"]:
    """Whether all of each row's last `answers` tokens are the likeliest."""
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    hidden = decoder.apply({"params": params}, tokens).hidden[:, -longest - 1 : -1]
    right = top_tokens(decoder, params, hidden) == tokens[:, -longest:]
    counted = jnp.arange(longest)[None] >= longest - answers[:, None]
    return constrain(jnp.all(right | ~counted, axis=1), (None,))
