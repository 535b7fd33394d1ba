"""Which layers keep softmax attention: score the model of each layer, rank, keep the most important.

Source: arXiv 2601.22156, attention layer selection; other rules say theirs in `halo/selection/rules.py`.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Sequence
from typing import ClassVar, get_args

import jax
import numpy as np

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.halo.imitation import row_errors
from hypenet_jax.halo.method import AbstractParams, Method, Models, Work
from hypenet_jax.halo.selection.budget import most_layers
from hypenet_jax.halo.selection.chosen import Selection, scored_selection, write_selection
from hypenet_jax.halo.selection.greedy import GreedySearch
from hypenet_jax.halo.selection.rules import RULES, Name, check_keep, uniform_layers
from hypenet_jax.halo.selection.score_files import read_scores
from hypenet_jax.halo.selection.scores import Kind, Score, Scores, collect
from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(Method):
    """The choice of softmax layers: starts from the teacher and the mixers of stage 1, leaves selection.json.

    The mixers are its final weights: so a selection is known to belong to those it was made with.

    Attributes:
      start_from: name of the stage 1 whose mixers replace the teacher's.
      keep: how many layers keep softmax attention; the published models keep a quarter. None: as many as
        `decode_bytes` leaves room for, or those of the rule "explicit".
      decode_tokens, decode_bytes: keep as many layers as let decoding one token of a row of `decode_tokens` move at
        most so many bytes, weights included, in bfloat16.
      rows: held-out rows scored per model and kind.
      rule: "halo" is the published one; "likelihood", "jet", "kl" and "mse" are the others of `RULES`. "uniform" spaces
        layers evenly, "explicit" keeps `layers`, "greedy" is `GreedySearch`.
      eps: added to the loss of common sense in the rule "halo": 1e-10 is the published value for accuracies.
        Log-likelihoods of layers that matter to nothing need about 0.01.
      measure: kinds that a sweep scores beside those that the rule needs: so other rules can be tried on its file.
      layers: of the rule "explicit".
      scores: in place of a sweep, a file or folder of scores, see `read_scores`.
      resamples: of the questions, from which the confidence of every rank comes; 0 leaves it out.
      refit_batches, refit_ridge: of the rule "greedy": text and strength of every candidate's refit.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    keep: int | None = None
    decode_tokens: int | None = None
    decode_bytes: int | None = None
    rows: int
    rule: Name = "halo"
    eps: float = 1e-10
    measure: tuple[Kind, ...] = ("retrieval", "commonsense")
    layers: tuple[int, ...] = ()
    scores: str | None = None
    resamples: int = 1000
    refit_batches: int = 0
    refit_ridge: float = 1e-2

    def __post_init__(self) -> None:
        names = get_args(Name)
        if self.rule not in names:
            known = f"{', '.join(names)} (halo was ratio)"
            raise ValueError(f"no rule {self.rule!r}; there are {known}")
        if (self.decode_tokens is None) != (self.decode_bytes is None):
            raise ValueError(f"{self}: decode_tokens and decode_bytes go together")
        explicit = self.rule == "explicit"
        if [self.keep is not None, self.decode_bytes is not None, explicit].count(True) != 1:
            raise ValueError(f"{self}: give one of keep, decode_bytes, and the rule explicit")
        if explicit != bool(self.layers):
            raise ValueError(f"{self}: layers are those of the rule explicit, which needs them")
        if self.scores is not None and self.rule not in RULES:
            raise ValueError(f"{self}: the rule {self.rule} reads no scores; leave them out")
        if (self.rule == "greedy") != (self.refit_batches > 0) or self.refit_ridge <= 0:
            raise ValueError(
                f"{self}: refit_batches are those of the rule greedy, which needs 1 or more; refit_ridge is above 0"
            )
        if self.rows < 1 or self.eps < 0 or self.resamples < 0:
            raise ValueError(f"{self}: rows must be at least 1, eps and resamples not negative")

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.scores is None else (self.scores,)

    def parent(self, models: Models) -> AbstractParams:
        return models.aligned_mixers()

    def run(self, work: Work) -> Params:
        count, keep = work.models.teacher.config.num_layers, self._number(work.models)
        if self.rule in RULES:
            numbers = {"eps": self.eps, "keep": keep, "resamples": self.resamples}
            selection = scored_selection(self.rule, self._scores(work), **numbers)
        elif self.rule == "greedy":
            fitted = {"batches": self.refit_batches, "ridge": self.refit_ridge}
            steps = GreedySearch(work=work, rows=self.rows, **fitted).run(keep)
            layers = tuple(sorted(layer for layer, _ in steps))
            selection = Selection(rule=self.rule, softmax_layers=layers, steps=steps)
        else:
            layers = self.layers if self.rule == "explicit" else uniform_layers(count, keep)
            selection = Selection(rule=self.rule, softmax_layers=tuple(sorted(layers)))
        log.info("layers %s keep softmax attention", selection.softmax_layers)
        if jax.process_index() == 0:
            write_selection(work.folder / "selection.json", selection)
        return work.weights.parent

    def _number(self, models: Models) -> int:
        """How many layers are kept; refused before anything is scored.

        Raises:
          ValueError: the model has no such layers, or not so many.
        """
        teacher = models.teacher.config
        unknown = sorted(set(self.layers) - set(range(teacher.num_layers)))
        if unknown or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"layers {self.layers} must be different ones from 0 to {teacher.num_layers - 1}"
            )
        keep = len(self.layers) if self.keep is None else self.keep
        if self.decode_bytes is not None and self.decode_tokens is not None:
            room = {"tokens": self.decode_tokens, "at_most": self.decode_bytes}
            keep = most_layers(teacher, models.mixer, recurrent=models.recurrent, **room)
        check_keep(keep, teacher.num_layers)
        return keep

    def _scores(self, work: Work) -> Scores:
        if self.scores is not None:
            path, count = pathlib.Path(self.scores), work.models.teacher.config.num_layers
            first = jax.process_index() == 0
            return runtime.broadcast(read_scores(path, count) if first else None)
        rule = RULES[self.rule]
        kinds = tuple(dict.fromkeys((*self.measure, *rule.needs)))
        return sweep(work, self.rows, kinds, rule.base)


def sweep(work: Work, rows: int, kinds: Sequence[Kind], of_teacher: Sequence[Kind] = ()) -> Scores:
    """Scores of the model of each layer in these kinds, and of the teacher itself in those of `of_teacher`.

    One program scores all models of a kind; what each got is kept as it comes (`Work.keep`).
    """
    models, weights = work.models, work.weights
    count, mixers = models.teacher.config.num_layers, weights.parent["mixers"]
    decoder = SweptDecoder(models.teacher, models.aligned_spec)

    def score(
        name: str, layer: int | None, replaced: Collection[int], of: Sequence[Kind]
    ) -> Sequence[Score]:
        def measure() -> list[Score]:
            params = swept_params(weights.teacher, mixers, replaced)
            return [_score(layer, kind, *work.measure(kind, decoder, params, rows)) for kind in of]

        return work.keep(name, measure)

    scores: list[Score] = []
    lost: list[Kind] = [kind for kind in kinds if kind in ("retrieval", "commonsense")]
    for layer in range(count) if lost else ():
        scores += score(f"layer {layer}", layer, (layer,), lost)
    if of_teacher:
        scores += score("the teacher", None, (), of_teacher)
    for layer in range(count) if "kl" in kinds else ():
        others = set(range(count)) - {layer}
        scores += score(f"layer {layer} restored", layer, others, ("kl",))
    if "mse" in kinds:
        scores += work.keep("imitations", lambda: _residuals(work, rows))
    return collect(scores, count)


def _residuals(work: Work, rows: int) -> list[Score]:
    """Relative error of every mixer of stage 1 in every row."""
    models, weights = work.models, work.weights
    read = models.teacher, models.aligned_spec, weights.teacher, weights.parent
    parts = [row_errors(*read, batch) for batch in work.heldout(rows)]
    errors = np.concatenate([np.asarray(errors) for errors, _ in parts], axis=1)
    tokens = np.concatenate([np.asarray(tokens) for _, tokens in parts])
    real = tokens > 0
    return [_score(i, "mse", own[real], tokens[real]) for i, own in enumerate(errors)]


def _score(layer: int | None, kind: Kind, values: np.ndarray, weights: np.ndarray) -> Score:
    own, by = (tuple(map(float, numbers)) for numbers in (values, weights))
    equal = len(set(by)) == 1
    return Score(layer=layer, kind=kind, task=kind, values=own, weights=None if equal else by)
