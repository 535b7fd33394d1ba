"""Scores of models on held-out text, for a stage that compares them; those of a sweep that was cut off are kept."""

import dataclasses
import functools
import itertools
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.evals import EvalModel, PasskeyEvaluator, held_out, retrieval
from hypenet_jax.sharding import on_mesh
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.provenance import Provenance, check_provenance, verified_metadata

log = logging.getLogger("hypenet_jax")

PASSKEYS = 4  # stated in each row


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """(retrieval, log-likelihood) of one model after another; `scores.json` keeps them, which process 0 writes."""

    inputs: Inputs
    provenance: Provenance
    stop: Callable[[int], bool]

    def __call__(self, number: int, decoder: Any, params: Params, rows: int) -> tuple[float, float]:
        """Scores model `number`, the next one, or returns what is kept of it.

        Raises:
          CheckpointError: the file belongs to another sweep.
          Preempted: `stop` said so.
        """
        name = self.inputs.config.name
        if number == len(self._scores):
            with on_mesh(self.inputs.mesh):
                scores = _score(self.inputs, EvalModel(name, decoder, params), rows)
            self._scores.append(scores)
            self._write()
        scores = self._scores[number]
        log.info("%s: layer %d, retrieval %.4f, log-likelihood %.4f", name, number, *scores)
        if self.stop(number):
            raise Preempted(f"stopped after layer {number} of {name}; its scores are kept")
        return scores

    @functools.cached_property
    def _scores(self) -> list[tuple[float, float]]:
        return runtime.broadcast(self._read() if jax.process_index() == 0 else None)

    def _read(self) -> list[tuple[float, float]]:
        name, path = self.inputs.config.name, self.inputs.config.folder / "scores.json"
        if not path.exists():
            return []
        metadata = verified_metadata(json.loads(path.read_text(encoding="utf-8")), path)
        check_provenance(metadata, self.provenance, path)
        scores = [(retrieved, sense) for retrieved, sense in metadata["scores"]]
        log.info("%s: going on after layer %d, fingerprint holds", name, len(scores) - 1)
        return scores

    def _write(self) -> None:
        if jax.process_index() == 0:
            path = self.inputs.config.folder / "scores.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(self.provenance.metadata(scores=self._scores)))
            new.replace(path)


def _score(inputs: Inputs, model: EvalModel, rows: int) -> tuple[float, float]:
    """Retrieval by the catalogue where the text has one, else of passkeys; likelihood of held-out text."""
    config, prepared, data = inputs.config, inputs.prepared, inputs.config.data
    length, size = data.context_length, data.sequences_per_step
    model = dataclasses.replace(model, text=prepared.tokens("heldout"))
    if data.needles is None:
        model = dataclasses.replace(model, tokenizer=prepared.tokenizer())
        passkeys = PasskeyEvaluator(rows=rows, statements=PASSKEYS)
        report = passkeys.measure(model, length, config.seed).select("passkey")
    else:
        report = retrieval(model, data.needles, length=length, num_rows=rows, seed=config.seed)
    # There is no row where all that the model computes is NaN.
    retrieved = report.rows[0].value if report.rows else math.nan
    batches = heldout_batches(prepared, length, size, data.reset_documents, data.join_below)
    read = held_out(model, itertools.islice(batches, max(1, rows // size)))
    return retrieved, -read.value("cross_entropy", model.name)
