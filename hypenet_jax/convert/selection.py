"""Scores of models on held-out text, for a stage that compares them; those of a sweep that was cut off are kept."""

import dataclasses
import functools
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
                report = _report(self.inputs, EvalModel(name, decoder, params), rows)
            scores = report.value("retrieval", name), -report.value("cross_entropy", name)
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


def _report(inputs: Inputs, model: EvalModel, rows: int) -> Report:
    """Retrieval by the catalogue where the text has one, else of passkeys; likelihood of held-out text."""
    config, prepared = inputs.config, inputs.prepared
    data, needles, text = config.data, config.data.needles, prepared.tokens("heldout")
    asked = {"length": data.context_length, "num_rows": rows, "seed": config.seed}
    if needles is None:
        tokenizer = prepared.tokenizer()
        report = passkey_retrieval(model, tokenizer, text, num_statements=PASSKEYS, **asked)
    else:
        counts = {"num_needles": needles.max_needles, "queries": needles.queries}
        report = retrieval(model, needles.catalogue, text, **counts, **asked)
    size = data.sequences_per_step
    batches = heldout_batches(prepared, data.context_length, size, data.reset_documents)
    return report + held_out(model, itertools.islice(batches, max(1, rows // size)))
