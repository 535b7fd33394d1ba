"""Which layers keep softmax attention: replace one at a time by its stage-1 mixer, score, rank.

Source: arXiv 2601.22156, attention layer selection.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypenet_jax.axes import Hidden, Logits, Params, Positions, SegmentIds, Tokens
from hypenet_jax.halo.method import AbstractParams, Method, Models, Work
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, Layer, Output
from hypenet_jax.model.layers import unroll_layers
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.stacking import group_names
from hypenet_jax.model.token_layout import layout_tokens

log = logging.getLogger("hypenet_jax")

LayerScores = Float[np.ndarray, " L"]
Rule = Literal["ratio", "likelihood"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(Method):
    """The choice of softmax layers: starts from the teacher and the mixers of stage 1, leaves selection.json.

    The mixers are its final weights: so a selection is known to belong to those it was made with.

    Attributes:
      start_from: name of the stage 1 whose mixers replace the teacher's.
      keep: how many layers keep softmax attention; the published models keep a quarter.
      rows: held-out rows scored per layer, for retrieval and for likelihood alike.
      eps: added to the loss of likelihood in the ratio: 1e-10 is the published value for accuracies. Log-likelihoods of
        layers that matter to nothing need about 0.01.
      rule: "ratio" is the published one, `halo_importance`. It divides by the loss of likelihood, so on few rows, where
        retrieval hardly differs, it keeps layers that matter little; "likelihood" keeps those that matter most.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    keep: int
    rows: int
    eps: float = 1e-10
    rule: Rule = "ratio"

    def parent(self, models: Models) -> AbstractParams:
        return models.aligned_mixers()

    def run(self, work: Work) -> Params:
        swept = SweptDecoder(work.models.teacher, work.models.aligned_spec)
        trees = work.weights.teacher, work.weights.parent["mixers"]
        scores = [
            work.score(layer, swept, swept_params(*trees, layer), self.rows)
            for layer in range(swept.config.num_layers)
        ]
        retrieval, commonsense = np.asarray(scores, np.float64).T
        selection = select(retrieval, commonsense, keep=self.keep, eps=self.eps, rule=self.rule)
        log.info("layers %s keep softmax attention", selection.softmax_layers)
        if jax.process_index() == 0:
            write_selection(work.folder / "selection.json", selection)
        return work.weights.parent


@dataclasses.dataclass(frozen=True)
class Selection:
    """A sweep's scores and what follows from them; replayable from its file."""

    retrieval: tuple[float, ...]
    commonsense: tuple[float, ...]
    importance: tuple[float, ...]
    softmax_layers: tuple[int, ...]
    eps: float


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
      ValueError: scores that are missing (negative or not finite retrieval, not finite commonsense).
    Source: arXiv 2601.22156; the maxima run over the sweep, not over the unmodified model, as in the official code.
    """
    _check_finite(retrieval, commonsense)
    lost_retrieval = retrieval.max() - retrieval
    lost_sense = commonsense.max() - commonsense
    return np.minimum(50.0, lost_retrieval / (lost_sense + eps))


def keep_layers(importance: LayerScores, k: int) -> tuple[int, ...]:
    """The k most important layers, in order of depth; of equal ones the deeper is kept, as in the official code.

    Raises:
      ValueError: k is not between 0 and the number of layers.
    """
    if not 0 <= k <= len(importance):
        raise ValueError(f"cannot keep {k} of {len(importance)} layers; use 0 to {len(importance)}")
    ranked = sorted(range(len(importance)), key=lambda i: (importance[i], i), reverse=True)
    return tuple(sorted(ranked[:k]))


def select(
    retrieval: LayerScores,
    commonsense: LayerScores,
    *,
    keep: int,
    eps: float,
    rule: Rule = "ratio",
) -> Selection:
    """The `keep` layers of the largest importance, with all scores.

    The importance is `halo_importance`, or by the rule "likelihood" max C - C_i.
    """
    _check_finite(retrieval, commonsense)
    importance = commonsense.max() - commonsense
    if rule == "ratio":
        importance = halo_importance(retrieval, commonsense, eps=eps)
    scores = (tuple(float(x) for x in each) for each in (retrieval, commonsense, importance))
    return Selection(*scores, softmax_layers=keep_layers(importance, keep), eps=eps)


def _check_finite(retrieval: LayerScores, commonsense: LayerScores) -> None:
    if not (np.isfinite(retrieval).all() and np.isfinite(commonsense).all()):
        raise ValueError(f"scores must be finite: retrieval {retrieval}, commonsense {commonsense}")


def write_selection(path: pathlib.Path, selection: Selection) -> None:
    """Writes a selection as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(selection), indent=2) + "\n", encoding="utf-8")


def read_selection(path: pathlib.Path) -> Selection:
    """Raises FileNotFoundError: no sweep has been run; it names what would write the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the select stage, or name softmax_layers")
    saved = json.loads(path.read_text(encoding="utf-8"))
    names = ("retrieval", "commonsense", "importance", "softmax_layers")
    return Selection(*(tuple(saved[name]) for name in names), eps=saved["eps"])


def swept_params(teacher: Params, mixers: Params, layer: int) -> Params:
    """Parameters of a `SweptDecoder` that replaces `layer` (-1 replaces none)."""
    return {**teacher, "mixers": mixers, "replaced": jnp.int32(layer)}


@dataclasses.dataclass(frozen=True)
class SweptDecoder:
    """The teacher with one layer's mixer replaced by its stage-1 mixer; which one is a parameter, so it compiles once.

    It stands in for a `Decoder` wherever one is only evaluated: `apply(variables, tokens, positions, segment_ids)`.
    A sweep writes no model.

    Attributes:
      teacher: a decoder of softmax layers, its groups of equal ones stacked.
      spec: of the mixers of stage 1.
    """

    teacher: Decoder
    spec: MixerSpec

    @property
    def config(self) -> ModelConfig:
        return self.teacher.config

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.teacher.dtype)

    def apply(
        self,
        variables: Params,
        tokens: Tokens | Hidden,
        positions: Positions | None = None,
        segment_ids: SegmentIds | None = None,
        method: str | None = None,
    ) -> Output | Logits:
        if method is not None:
            return self.teacher.apply(variables, tokens, method=method)
        params, teacher = variables["params"], self.teacher
        layout, _ = layout_tokens(tokens.shape[0], tokens.shape[1], positions, segment_ids)

        def apply(spec: MixerSpec, own: Params, x: Hidden) -> Hidden:
            layer = Layer(spec, self.config, teacher.dtype, teacher.start, tap=False)
            return layer.apply({"params": own}, x, None, layout)[0]

        def layer(
            spec: MixerSpec, x: Hidden, xs: tuple[Params, Params, Int[Array, ""]]
        ) -> tuple[Hidden, None]:
            own, aligned, index = xs
            x = jax.lax.cond(
                index == params["replaced"],
                lambda: apply(self.spec, {**own, "mixer": aligned}, x),
                lambda: apply(spec, own, x),
            )
            return x, None

        bound = teacher.bind({"params": params})
        x = bound.embed(tokens)
        for name, group in group_names(self.config, scan=True):
            one = functools.partial(layer, self.config.mixers[group[0]])
            own = slice(group.start, group.stop)
            mixers = jax.tree.map(lambda leaf, own=own: leaf[own], params["mixers"])
            rows = (params[name], mixers, jnp.arange(group.start, group.stop))
            x, _ = jax.lax.scan(one, x, rows, unroll=len(group) if unroll_layers() else 1)
        return Output(bound.final_norm(x))
