"""Rules: from the scores of a sweep to how important softmax attention is in each layer, and how sure that is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from hypenet_jax.halo.selection.scores import Kind, LayerScores, Scores

Name = Literal["halo", "likelihood", "jet", "kl", "mse", "uniform", "explicit", "greedy"]
INTERVAL = (2.5, 97.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Layers by what a sweep scored.

    Attributes:
      needs: kinds of scores that it reads.
      base: of which it also needs those of the model with no layer replaced.
      importance: of each layer, given the scores and eps.
    """

    needs: tuple[Kind, ...]
    base: tuple[Kind, ...] = ()
    importance: Callable[[Scores, float], LayerScores]


def halo_importance(
    retrieval: LayerScores, commonsense: LayerScores, *, eps: float = 1e-10
) -> LayerScores:
    """Retrieval that a layer's softmax carries per unit of common sense.

    importance_i = min(50, (max R - R_i) / (max C - C_i + eps))

    Args:
      retrieval: R_i, score on retrieval tasks with layer i alone replaced.
      commonsense: C_i, score on short-context tasks with layer i alone replaced.
      eps: 1e-10 is the published value.
    Raises:
      ValueError: scores that are not finite.
    Source: arXiv 2601.22156; the maxima run over the sweep, not over the unmodified model, as in the official code.
    """
    if not (np.isfinite(retrieval).all() and np.isfinite(commonsense).all()):
        raise ValueError(f"scores must be finite: retrieval {retrieval}, commonsense {commonsense}")
    lost_retrieval = retrieval.max() - retrieval
    lost_sense = commonsense.max() - commonsense
    return np.minimum(50.0, lost_retrieval / (lost_sense + eps))


def _halo(scores: Scores, eps: float) -> LayerScores:
    return halo_importance(scores.of("retrieval"), scores.of("commonsense"), eps=eps)


def _likelihood(scores: Scores, eps: float) -> LayerScores:
    return scores.of("commonsense").max() - scores.of("commonsense")


def _jet(scores: Scores, eps: float) -> LayerScores:
    return scores.base("retrieval") - scores.of("retrieval")


def _kl(scores: Scores, eps: float) -> LayerScores:
    return scores.of("kl").max() - scores.of("kl")


def _mse(scores: Scores, eps: float) -> LayerScores:
    return scores.of("mse")


RULES: Mapping[str, Rule] = {
    # The published one, `halo_importance`: it divides by the loss of common sense, so it needs many questions.
    "halo": Rule(needs=("retrieval", "commonsense"), importance=_halo),
    # max C - C_i.
    "likelihood": Rule(needs=("commonsense",), importance=_likelihood),
    # R of the teacher - R_i: retrieval lost (Jet-Nemotron, arXiv 2508.15884, as the official code of HALO has it).
    "jet": Rule(needs=("retrieval",), base=("retrieval",), importance=_jet),
    # max KL - KL_i: nats that restoring layer i saves in a student that is recurrent everywhere else.
    "kl": Rule(needs=("kl",), importance=_kl),
    # What stage 1 could not imitate.
    "mse": Rule(needs=("mse",), importance=_mse),
}
"""Rules that rank layers by scores; the others of `Name` place layers, or search for them (`greedy.py`)."""


def ranked(importance: LayerScores) -> tuple[int, ...]:
    """Layers, the most important first; of equal ones the deeper, as in the official code."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], i), reverse=True)
    return tuple(order)


def keep_layers(importance: LayerScores, k: int) -> tuple[int, ...]:
    """The k most important layers, in order of depth; see `ranked`.

    Raises:
      ValueError: k is not between 0 and the number of layers.
    """
    check_keep(k, len(importance))
    return tuple(sorted(ranked(importance)[:k]))


def uniform_layers(num_layers: int, k: int) -> tuple[int, ...]:
    """k layers that end equal parts of the model: 3, 7, ..., 27 for 7 of 28.

    Raises:
      ValueError: k is not between 0 and the number of layers.
    """
    check_keep(k, num_layers)
    return tuple(num_layers * (i + 1) // k - 1 for i in range(k))


def check_keep(k: int, num_layers: int) -> None:
    """Raises ValueError: k is not between 0 and the number of layers."""
    if not 0 <= k <= num_layers:
        raise ValueError(f"cannot keep {k} of {num_layers} layers; use 0 to {num_layers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confidence:
    """How sure a ranking is, by the bootstrap over questions.

    Attributes:
      resamples: how often the questions were drawn anew.
      rank_low, rank_high: of each layer, between which 95 % of its ranks lie; rank 1 is the most important layer.
      kept: share of resamples in which each layer is kept.
    """

    resamples: int
    rank_low: tuple[float, ...]
    rank_high: tuple[float, ...]
    kept: tuple[float, ...]


def confidence(
    rule: Rule, scores: Scores, *, eps: float, keep: int, resamples: int, seed: int
) -> Confidence | None:
    """Ranks all layers anew for questions drawn with replacement.

    Returns:
      None without resamples, or where a task has a mean alone.
    Source: B. Efron, Bootstrap methods: another look at the jackknife, 1979; percentile intervals.
    """
    used = scores.select((*rule.needs, *rule.base))
    if resamples == 0 or used.num_questions < 2:
        return None
    rng, ranks = np.random.default_rng(seed), []
    for _ in range(resamples):
        order = ranked(rule.importance(used.resampled(rng), eps))
        ranks.append(np.argsort(order) + 1)
    drawn = np.stack(ranks)
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    columns = (low, high, (drawn <= keep).mean(axis=0))
    rank_low, rank_high, kept = (tuple(map(float, column)) for column in columns)
    return Confidence(resamples=resamples, rank_low=rank_low, rank_high=rank_high, kept=kept)
