"""Scores of models on held-out text, for a stage that compares them; those of a sweep that was cut off are kept."""

import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.evals import EvalModel, Report, held_out, retrieval
from hypenet_jax.evals.retrieval.passkey import passkey_retrieval
from hypenet_jax.sharding import on_mesh
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.provenance import Provenance, check_provenance, verified_metadata

log = logging.getLogger("hypenet_jax")

# Passkeys stated in each row.
PASSKEYS = 4


class LayerScores:
    """(retrieval, log-likelihood) of one model after another; `scores.json` keeps them, which process 0 writes.

    Raises:
      CheckpointError: the file belongs to another sweep.
    """

    def __init__(self, inputs: Inputs, provenance: Provenance, stop: Callable[[int], bool]) -> None:
        self._inputs, self._provenance, self._stop = inputs, provenance, stop
        self._path = inputs.config.folder / "scores.json"
        self._scores: list[tuple[float, float]] = runtime.broadcast(self._read())

    def __call__(self, number: int, decoder: Any, params: Params, rows: int) -> tuple[float, float]:
        """Scores model `number`, the next one, or returns what is kept of it.

        Raises:
          Preempted: `stop` said so.
        """
        name = self._inputs.config.name
        if number == len(self._scores):
            with on_mesh(self._inputs.mesh):
                report = _report(self._inputs, EvalModel(name, decoder, params), rows)
            scores = report.value("retrieval", name), -report.value("cross_entropy", name)
            self._scores.append(scores)
            self._write()
        scores = self._scores[number]
        log.info("%s: layer %d, retrieval %.4f, log-likelihood %.4f", name, number, *scores)
        if self._stop(number):
            raise Preempted(f"stopped after layer {number} of {name}; its scores are kept")
        return scores

    def _read(self) -> list[tuple[float, float]]:
        if jax.process_index() > 0 or not self._path.exists():
            return []
        metadata = verified_metadata(
            json.loads(self._path.read_text(encoding="utf-8")), str(self._path)
        )
        check_provenance(metadata, self._provenance, str(self._path))
        scores = [(retrieved, sense) for retrieved, sense in metadata["scores"]]
        name = self._inputs.config.name
        log.info("%s: going on after layer %d, fingerprint holds", name, len(scores) - 1)
        return scores

    def _write(self) -> None:
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(self._provenance.metadata(scores=self._scores)))
            new.replace(self._path)


def _report(inputs: Inputs, model: EvalModel, rows: int) -> Report:
    """Retrieval by the catalogue where the text has one, else of passkeys; likelihood of held-out text."""
    config, text = inputs.config, inputs.prepared.tokens("heldout")
    data = config.data
    if data.needles is None:
        report = passkey_retrieval(
            model,
            inputs.prepared.tokenizer(),
            text,
            length=data.context_length,
            num_rows=rows,
            num_statements=PASSKEYS,
            seed=config.seed,
        )
    else:
        report = retrieval(
            model,
            data.needles.catalogue,
            text,
            length=data.context_length,
            num_rows=rows,
            num_needles=data.needles.max_needles,
            queries=data.needles.queries,
            seed=config.seed,
        )
    size = data.sequences_per_step
    batches = heldout_batches(
        inputs.prepared, data.context_length, size, reset_documents=data.reset_documents
    )
    return report + held_out(model, itertools.islice(batches, max(1, rows // size)))
