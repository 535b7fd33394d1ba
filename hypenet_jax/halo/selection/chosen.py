"""What a selection chose and why, as one JSON file: later stages read its layers, the report plots the rest."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from hypenet_jax.halo.selection.rules import RULES, Confidence, confidence, keep_layers
from hypenet_jax.halo.selection.scores import Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The layers that keep softmax attention.

    Attributes:
      rule: which chose them; None: an older version did, and did not say.
      softmax_layers: in order of depth.
      eps: of the rule; None where it has none.
      scores: by kind, the mean of each layer; none where the rule reads none.
      teacher: by kind, the mean of the unmodified teacher, where it was scored.
      importance: of each layer; None where the rule does not rank layers.
      confidence: of the ranking; None where it could not be told.
      steps: of a greedy search: each layer in the order in which it was restored, and KL in nats from then on.
    """

    rule: str | None
    softmax_layers: tuple[int, ...]
    eps: float | None = None
    scores: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    teacher: Mapping[str, float] = dataclasses.field(default_factory=dict)
    importance: tuple[float, ...] | None = None
    confidence: Confidence | None = None
    steps: tuple[tuple[int, float], ...] = ()


def scored_selection(
    name: str, scores: Scores, *, keep: int, eps: float = 1e-10, resamples: int = 0, seed: int = 0
) -> Selection:
    """The `keep` most important layers by a rule of `RULES`, which arguments are those of `confidence`.

    Raises:
      ValueError: scores that the rule needs are missing, or `keep` is not between 0 and the number of layers.
    """
    rule = RULES[name]
    importance = rule.importance(scores, eps)
    without = {task.kind for task in scores.tasks if task.base is None}
    numbers = {"eps": eps, "keep": keep, "resamples": resamples, "seed": seed}
    return Selection(
        rule=name,
        softmax_layers=keep_layers(importance, keep),
        eps=eps if name == "halo" else None,
        scores={kind: tuple(map(float, scores.of(kind))) for kind in scores.kinds},
        teacher={kind: scores.base(kind) for kind in scores.kinds if kind not in without},
        importance=tuple(map(float, importance)),
        confidence=confidence(rule, scores, **numbers),
    )


def write_selection(path: pathlib.Path, selection: Selection) -> None:
    """Writes a selection as JSON, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(selection), indent=2) + "\n", encoding="utf-8")


def read_selection(path: pathlib.Path) -> Selection:
    """The selection of a file, also of an older version's, which has no rule and no confidence.

    Raises:
      FileNotFoundError: no sweep has been run; it names what would write the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the select stage, or name softmax_layers")
    saved = json.loads(path.read_text(encoding="utf-8"))
    scores = saved.get("scores") or {
        k: saved[k] for k in ("retrieval", "commonsense") if k in saved
    }
    importance, sure = saved.get("importance"), saved.get("confidence")
    if sure is not None:
        columns = {name: tuple(sure[name]) for name in ("rank_low", "rank_high", "kept")}
        sure = Confidence(resamples=sure["resamples"], **columns)
    return Selection(
        rule=saved.get("rule"),
        softmax_layers=tuple(saved["softmax_layers"]),
        eps=saved["eps"],
        scores={kind: tuple(means) for kind, means in scores.items()},
        teacher=saved.get("teacher", {}),
        importance=None if importance is None else tuple(importance),
        confidence=sure,
        steps=tuple((layer, kl) for layer, kl in saved.get("steps", ())),
    )
