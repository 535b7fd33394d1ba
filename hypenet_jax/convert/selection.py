"""Scores of models on held-out text, for a stage that compares them; those of a sweep that was cut off are kept."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from hypenet_jax import axes, runtime
from hypenet_jax.axes import Params
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.data.batch import Batch
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.evals import EvalModel, PasskeyEvaluator
from hypenet_jax.evals.language.heldout import held_out_rows
from hypenet_jax.evals.language.predictions import final_hits
from hypenet_jax.evals.retrieval.needle import retrieved
from hypenet_jax.halo.selection.score_files import score_from_json, score_to_json
from hypenet_jax.halo.selection.scores import Kind, Measure, Score
from hypenet_jax.sharding import num_parts, on_mesh, place_batch, row_parts
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.provenance import Provenance, check_provenance, verified_metadata

log = logging.getLogger("hypenet_jax")

PASSKEYS = 4  # stated in each row
SCORES = "scores.json"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Scores of one model after another, see `halo.method.Keep`; `scores.json` keeps them, which process 0 writes."""

    inputs: Inputs
    provenance: Provenance
    stop: Callable[[int], bool]

    def __call__(self, model: str, measure: Measure) -> Sequence[Score]:
        """Scores the model of this name, the next one, or returns what is kept of it.

        Raises:
          CheckpointError: the file belongs to another sweep.
          Preempted: `stop` said so.
        """
        name = self.inputs.config.name
        if model in self._models:
            return self._models[model]
        with on_mesh(self.inputs.mesh):
            scores = self._models[model] = tuple(measure())
        self._write()
        told = ", ".join(f"{score.kind} {score.mean:.4f}" for score in scores[:2])
        log.info("%s: %s, %s%s", name, model, told, ", ..." if scores[2:] else "")
        if self.stop(len(self._models) - 1):
            raise Preempted(f"stopped after {model} of {name}; its scores are kept")
        return scores

    @functools.cached_property
    def _models(self) -> dict[str, Sequence[Score]]:
        return runtime.broadcast(self._read() if jax.process_index() == 0 else None)

    def _read(self) -> dict[str, Sequence[Score]]:
        name, path = self.inputs.config.name, self.inputs.config.folder / SCORES
        if not path.exists():
            return {}
        metadata = verified_metadata(json.loads(path.read_text(encoding="utf-8")), path)
        check_provenance(metadata, self.provenance, path)
        kept = metadata["models"].items()
        models: dict[str, Sequence[Score]] = {}
        for model, scores in kept:
            models[model] = tuple(map(score_from_json, scores))
        log.info("%s: going on after %s, fingerprint holds", name, [*models][-1])
        return models

    def _write(self) -> None:
        if jax.process_index() == 0:
            path = self.inputs.config.folder / SCORES
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            kept = self._models.items()
            models = {model: [*map(score_to_json, scores)] for model, scores in kept}
            new.write_text(json.dumps(self.provenance.metadata(models=models)))
            new.replace(path)


def measure(
    inputs: Inputs, kind: Kind, decoder: Any, params: Params, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of so many held-out rows, and their weights; see `halo.selection.scores.Kind`.

    Retrieval is by the catalogue where the text has one, else of passkeys; common sense the log-likelihood of text.
    """
    model = EvalModel(inputs.config.name, decoder, params, text=inputs.prepared.tokens("heldout"))
    if kind == "retrieval":
        found = _found(inputs, model, rows)
        return found, np.ones(len(found))
    teacher = None
    if kind == "kl":
        teacher = EvalModel("teacher", inputs.models.teacher, inputs.weights.teacher)
    read = held_out_rows(model, heldout_rows(inputs, rows), teacher)
    if kind == "kl":
        return read["kl"]
    losses, tokens = read["cross_entropy"]
    return -losses, tokens


def _found(inputs: Inputs, model: EvalModel, rows: int) -> np.ndarray:
    """Of each row, the share of questions that the model answers; NaN where it computes NaN."""
    data, seed = inputs.config.data, inputs.config.seed
    if data.needles is None:
        model = dataclasses.replace(model, tokenizer=inputs.prepared.tokenizer())
        passkeys = PasskeyEvaluator(rows=rows, statements=PASSKEYS)
        return final_hits(model, *passkeys.questions(model, data.context_length, seed))
    length = data.context_length
    hits = retrieved(model, data.needles, length=length, num_rows=rows, seed=seed)
    return hits.mean(axis=1)


def heldout_rows(inputs: Inputs, rows: int) -> Iterator[Batch]:
    """The first held-out rows: at most `rows`, in whole batches of the stage, at least one.

    On a mesh whose data axes are wider than such a batch, more rows come at once: each device gets some.
    """
    data, prepared = inputs.config.data, inputs.prepared
    size, parts = data.sequences_per_step, num_parts(axes.BATCH, inputs.mesh.abstract_mesh)
    count, wide = max(1, rows // size) * size, -(-size // parts) * parts
    text = data.context_length, wide, data.reset_documents, data.join_below
    batches = heldout_batches(prepared, *text)
    for first, batch in zip(range(0, count, wide), batches, strict=False):
        wanted = np.arange(first, first + wide)[:, None] < count
        yield jax.tree.map(lambda leaf, wanted=wanted: np.where(wanted, leaf, 0), batch)


def placed_rows(inputs: Inputs, rows: int) -> Iterator[Batch]:
    """The same on the mesh."""
    host, hosts = row_parts(inputs.mesh)
    for batch in heldout_rows(inputs, rows):
        yield place_batch(
            jax.tree.map(lambda leaf: np.split(leaf, hosts)[host], batch), inputs.mesh
        )
