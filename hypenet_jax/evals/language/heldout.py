"""How well models predict the held-out rows of a prepared corpus, and how far they are from the first of them."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import open_prepared
from hypenet_jax.evals.evaluator import Evaluator, Session, check_positive
from hypenet_jax.evals.language.perplexity import exp
from hypenet_jax.evals.language.predictions import token_scores
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row, Z
from hypenet_jax.generation.model import Model
from hypenet_jax.losses import (
    Mean,
    distillation_by_row,
    next_token_by_row,
    predicting,
    real_tokens,
)
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import constrain

_table = functools.partial(
    Presentation, kind="table", section="Held-out text at the training length"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutEvaluator(Evaluator):
    """Cross entropy, perplexity and top-1 of held-out rows, and KL to the first model.

    Of conversations they count what the assistant says.

    Attributes:
      folder: of a prepared corpus, with whose tokenizer the models read.
      context_length: tokens of a row; a divisor of the corpus's block_length, and of conversations that itself.
      rows: how many; batch: how many at once, and the unit of the intervals: with 1 they are over rows.
      reset_documents: each document of a row is read by itself.
    """

    folder: str
    context_length: int
    rows: int
    batch: int = 16
    reset_documents: bool = True

    together: ClassVar[bool] = True
    shown: ClassVar = (
        _table(metric="heldout_perplexity", title="Perplexity"),
        _table(
            metric="heldout_top1", title="Share of tokens that were the likeliest", unit="share"
        ),
        _table(metric="heldout_kl", title="KL to the first model, nats per token"),
    )

    def __post_init__(self) -> None:
        check_positive(self, "context_length", "rows", "batch")

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        """Rows "heldout_" with what `held_out` returns; "perplexity_gap" is the part by which a model's perplexity is
        above the first one's."""
        report, first = Report(), models[0]
        for model in models:
            own = dataclasses.replace(session, model=model.name)
            measure = functools.partial(self._measure, model, None if model is first else first)
            report += own.keep("held-out text", measure, self.context_length)
        values = {row.model: row.value for row in report.select("heldout_perplexity").rows}
        base = values.pop(first.name, None)
        gaps = [Row("perplexity_gap", n, v / base - 1, 1) for n, v in values.items() if base]
        return report.add(*gaps)

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        return [
            (f"held-out perplexity of {row.model} against the first", f"{row.value:+.1%}")
            for row in report.select("perplexity_gap").rows[:1]
        ]

    def _measure(self, model: EvalModel, teacher: EvalModel | None) -> Report:
        prepared = open_prepared(self.folder)
        batches = heldout_batches(prepared, self.context_length, self.batch, self.reset_documents)
        some = itertools.islice(batches, -(-self.rows // self.batch))
        report = held_out(model, some, teacher, answers_only=prepared.holds_conversations)
        rows = (dataclasses.replace(row, metric=f"heldout_{row.metric}") for row in report.rows)
        return Report(tuple(rows))


def held_out(
    model: EvalModel,
    batches: Iterable[Batch],
    teacher: EvalModel | None = None,
    *,
    answers_only: bool = False,
) -> Report:
    """How well held-out text is predicted, and how far the model is from its teacher.

    Args:
      batches: rows of one length; each token counts as its `loss_weight` says.
      teacher: compared with where given.
      answers_only: KL counts as `loss_weight` says too, not every real token.
    Returns:
      Rows "cross_entropy" (nats), "perplexity" (its exp), "top1" (share of tokens that were the likeliest) and, with a
      teacher, "kl": KL(teacher || model) in nats. The count is that of predicted tokens; the interval of 95 % is that
      of a mean over batches, None for a single batch.
    """
    parts, length, count = [], 0, 0
    for batch in batches:
        length = batch.tokens.shape[1]
        count += int(np.count_nonzero(np.asarray(batch.loss_weight)))
        means = _rows(model, batch, teacher, answers_only)
        parts.append(jax.tree.map(lambda rows: np.asarray(rows, np.float64).sum(), means))
    if not count:
        raise ValueError(f"no token to predict in the held-out text of {model.name}; give more")
    own = {"model": model.name, "count": count, "length": length}
    rows = [_mean(name, [part[name] for part in parts], **own) for name in parts[0]]
    return Report((*rows, *(_perplexity(row) for row in rows if row.metric == "cross_entropy")))


def held_out_rows(
    model: EvalModel, batches: Iterable[Batch], teacher: EvalModel | None = None
) -> dict[str, tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]]:
    """What `held_out` measures, of each row by itself; rows of padding alone are left out.

    Returns:
      By metric, the mean of each row, and the sum of the weights that it is over.
    """
    parts = [_rows(model, batch, teacher, answers_only=False) for batch in batches]
    rows = {}
    for name in parts[0] if parts else ():
        total, weight = (
            np.concatenate([np.asarray(x, np.float64) for x in column])
            for column in zip(*((p[name].total, p[name].weight) for p in parts), strict=True)
        )
        real = weight > 0
        rows[name] = total[real] / weight[real], weight[real]
    if not any(len(means) for means, _ in rows.values()):
        raise ValueError(f"no token to predict in the held-out text of {model.name}; give more")
    return rows


def _rows(
    model: EvalModel, batch: Batch, teacher: EvalModel | None, answers_only: bool
) -> dict[str, Mean]:
    """Sums over each row of a batch, "B"."""
    models = [model] if teacher is None else [model, teacher]
    decoders, params = tuple(m.decoder for m in models), tuple(m.params for m in models)
    return _held_out(decoders, answers_only, params, batch)


def _mean(metric: str, batches: Sequence[Mean], **own: Any) -> Row:
    """m = sum_b total_b / sum_b weight_b of n batches, with its interval of 95 %, where it can lie; `own` as in `Row`.

    error of m = sqrt(n / (n - 1) sum_b (total_b - m weight_b)^2) / sum_b weight_b

    Source: the ratio estimator; W. G. Cochran, Sampling Techniques, 1977, chapter 6.
    """
    totals = [float(batch.total) for batch in batches]
    weights = [float(batch.weight) for batch in batches]
    n, mean = len(batches), sum(totals) / sum(weights)
    row = Row(metric, value=mean, **own)
    if n == 1:
        return row
    squares = sum((t - mean * w) ** 2 for t, w in zip(totals, weights, strict=True))
    spread = Z * math.sqrt(n / (n - 1) * squares) / sum(weights)
    most = 1.0 if metric == "top1" else math.inf
    return dataclasses.replace(row, low=max(mean - spread, 0.0), high=min(mean + spread, most))


def _perplexity(entropy: Row) -> Row:
    """exp of a cross entropy and of its interval."""
    low, high = (None if end is None else exp(end) for end in (entropy.low, entropy.high))
    value = exp(entropy.value)
    return dataclasses.replace(entropy, metric="perplexity", value=value, low=low, high=high)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _held_out(
    decoders: tuple[Model, ...], answers_only: bool, params: tuple[Params, ...], batch: Batch
) -> dict[str, Mean]:
    """Sums over each row for the first model, and its distance from the second one, if there is one."""
    tokens = constrain(batch.tokens, (axes.BATCH, axes.TIME))
    placed = (tokens, batch.positions, batch.segment_ids)
    pairs = list(zip(decoders, params, strict=True))
    hidden, *targets = (decoder.apply({"params": own}, *placed).hidden for decoder, own in pairs)
    head, *target_heads = (output_head(own, decoder.config) for decoder, own in pairs)
    labels, weights = jnp.roll(tokens, -1, axis=1), predicting(batch.loss_weight)
    _, hits = token_scores(decoders[0], params[0], hidden, labels, weights > 0)
    means = {
        "cross_entropy": next_token_by_row(hidden, head, tokens, batch.loss_weight),
        "top1": Mean(jnp.sum(hits * weights, axis=1), jnp.sum(weights, axis=1)),
    }
    for target, target_head in zip(targets, target_heads, strict=True):
        counted = weights if answers_only else real_tokens(batch.segment_ids)
        means["kl"] = distillation_by_row(hidden, head, target, target_head, counted)
    return jax.tree.map(lambda x: constrain(x, (None,)), means)
