"""How well models predict the held-out rows of a prepared corpus, and how far they are from the first of them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.perplexity import exp
from hypenet_jax.evals.language.predictions import top_tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.generation.model import Model
from hypenet_jax.losses import Mean, distillation, next_token, real_tokens
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import constrain

_SECTION = "Held-out text at the training length"
PRESENTATIONS = (
    Presentation(metric="heldout_perplexity", title="Perplexity", kind="table", section=_SECTION),
    Presentation(
        metric="heldout_top1",
        title="Share of tokens that were the likeliest",
        unit="share",
        kind="table",
        section=_SECTION,
    ),
    Presentation(
        metric="heldout_kl",
        title="KL to the first model, nats per token",
        kind="table",
        section=_SECTION,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutEvaluator(Evaluator):
    """Cross entropy, perplexity and top-1 of held-out rows, and KL to the first model.

    Attributes:
      folder: of a prepared corpus, with whose tokenizer the models read.
      context_length: tokens of a row; a divisor of the stored ones.
      rows: how many; batch: how many at once.
      reset_documents: each document of a row is read by itself.
    """

    folder: str
    context_length: int
    rows: int
    batch: int = 16
    reset_documents: bool = True

    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, "context_length", "rows", "batch")

    @property
    def presentations(self) -> tuple[Presentation, ...]:
        return PRESENTATIONS

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        """Rows "heldout_" with what `held_out` returns; "perplexity_gap" is the part by which a model's perplexity is
        above the first one's."""
        report, first = Report(), models[0]
        for model in models:
            own = dataclasses.replace(session, model=model.name)
            measure = functools.partial(self._measure, model, None if model is first else first)
            report += own.keep("held-out text", measure, self.context_length)
        base = report.select("heldout_perplexity", first.name).rows
        others = [r for r in report.select("heldout_perplexity").rows if r.model != first.name]
        gaps = [
            Row("perplexity_gap", r.model, r.value / base[0].value - 1, 1) for r in others if base
        ]
        return report.add(*gaps)

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        rows = report.select("perplexity_gap").rows
        return [
            (f"held-out perplexity of {r.model} against the first", f"{r.value:+.1%}")
            for r in rows[:1]
        ]

    def _measure(self, model: EvalModel, teacher: EvalModel | None) -> Report:
        batches = heldout_batches(
            open_prepared(self.folder), self.context_length, self.batch, self.reset_documents
        )
        report = held_out(model, itertools.islice(batches, -(-self.rows // self.batch)), teacher)
        rows = (dataclasses.replace(row, metric=f"heldout_{row.metric}") for row in report.rows)
        return Report(tuple(rows))


def held_out(
    model: EvalModel, batches: Iterable[Batch], teacher: EvalModel | None = None
) -> Report:
    """How well held-out text is predicted, and how far the model is from its teacher.

    Args:
      batches: rows of one length; each token counts as its `loss_weight` says.
      teacher: compared with where given.
    Returns:
      Rows "cross_entropy" (nats), "perplexity" (its exp), "top1" (share of tokens that were the likeliest) and, with a
      teacher, "kl": KL(teacher || model) in nats over all real tokens. The count is that of predicted tokens.
    """
    sums: dict[str, np.ndarray] = {}
    length = count = 0
    for batch in batches:
        length = batch.tokens.shape[1]
        count += int(np.count_nonzero(np.asarray(batch.loss_weight)))
        means = _held_out(
            model.decoder,
            model.params,
            None if teacher is None else teacher.decoder,
            None if teacher is None else teacher.params,
            batch,
        )
        for name, mean in means.items():
            pair = np.asarray([mean.total, mean.weight], np.float64)
            sums[name] = sums[name] + pair if name in sums else pair
    if not count:
        raise ValueError(f"no token to predict in the held-out text of {model.name}; give more")
    values = {name: float(total / weight) for name, (total, weight) in sums.items()}
    values["perplexity"] = exp(values["cross_entropy"])
    return Report(
        tuple(Row(name, model.name, value, count, length) for name, value in values.items())
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _held_out(
    decoder: Model,
    params: Params,
    teacher: Model | None,
    teacher_params: Params | None,
    batch: Batch,
) -> dict[str, Mean]:
    tokens = constrain(batch.tokens, (axes.BATCH, axes.TIME))
    placed = (tokens, batch.positions, batch.segment_ids)
    hidden = decoder.apply({"params": params}, *placed).hidden
    head = output_head(params, decoder.config)
    hit = (top_tokens(decoder, params, hidden[:, :-1]) == tokens[:, 1:]).astype(jnp.float32)
    weights = batch.loss_weight[:, 1:]
    means = {
        "cross_entropy": next_token(hidden, head, tokens, batch.loss_weight),
        "top1": Mean(jnp.sum(hit * weights), jnp.sum(weights)),
    }
    if teacher is not None and teacher_params is not None:
        target = teacher.apply({"params": teacher_params}, *placed).hidden
        target_head = output_head(teacher_params, teacher.config)
        real = real_tokens(batch.segment_ids)
        means["kl"] = distillation(hidden, head, target, target_head, real, temperature=1.0)
    return jax.tree.map(lambda x: constrain(x, ()), means)
