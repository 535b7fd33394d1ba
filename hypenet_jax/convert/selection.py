"""The select stage: score the teacher with each layer replaced in turn, and write which layers are kept."""

import itertools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.initial_weights import aligned_mixers
from hypenet_jax.convert.models import load_teacher, teacher_fingerprint
from hypenet_jax.convert.training import is_done, prepared_data, provenance_of
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import Prepared
from hypenet_jax.evals import EvalModel, Report, held_out, retrieval
from hypenet_jax.evals.passkey import passkey_retrieval
from hypenet_jax.halo.select import (
    SelectConfig,
    SweptDecoder,
    sweep,
    write_selection,
)
from hypenet_jax.halo.select import (
    select as choose,
)
from hypenet_jax.sharding import make_mesh, on_mesh
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.provenance import Provenance, check_provenance, unsealed
from hypenet_jax.train.stage_output import save_params

log = logging.getLogger("hypenet_jax")

# Codes stated in each row of the retrieval by words.
PASSKEYS = 4


def select(run: StageConfig, *, stop: Callable[[int], bool] = lambda layer: False) -> None:
    """Sweeps the layers and leaves `run_dir/name/selection.json`; returns at once if this very run has.

    Args:
      stop: asked after every layer; True raises Preempted, and the layers scored so far are not scored again.
    Raises:
      CheckpointError: stage 1 has not left its mixers, or the folder belongs to another config.
    """
    assert isinstance(run.method, SelectConfig)
    if is_done(run):
        log.info("%s: done before, %s", run.name, run.folder / "selection.json")
        return
    mesh = make_mesh(run.mesh)
    prepared = prepared_data(run)
    teacher, frozen = load_teacher(run, mesh)
    aligned, parent_output = aligned_mixers(run, run.method.start_from, teacher, mesh)
    swept = SweptDecoder(teacher)
    text = prepared.text_fingerprint
    provenance = provenance_of(run, parent_output.fingerprint, teacher_fingerprint(run), text)
    kept = _Scored(run.folder / "scores.json", provenance, teacher.config.num_layers)

    def score(params: Params) -> tuple[float, float]:
        layer = int(params["replaced"])
        if not kept.has(layer):
            report = _scores(run, prepared, EvalModel(run.name, swept, params))
            sense = -report.value("cross_entropy", run.name)
            kept.add(layer, report.value("retrieval", run.name), sense)
        found = kept.scores(layer)
        log.info("%s: layer %d, retrieval %.4f, log-likelihood %.4f", run.name, layer, *found)
        if stop(layer):
            raise Preempted(f"stopped after layer {layer} of {run.name}; its scores are kept")
        return found

    with on_mesh(mesh):
        scores = sweep(score, frozen, aligned["mixers"])
    selection = choose(*scores, keep=run.method.keep, eps=run.method.eps)
    log.info("%s: layers %s keep softmax attention", run.name, selection.softmax_layers)
    if jax.process_index() == 0:
        write_selection(run.folder / "selection.json", selection)
        shutil.rmtree(run.folder / "final", ignore_errors=True)
    # The mixers travel along, so that a selection is known to belong to the weights it was made with.
    save_params(run.folder / "final", aligned, provenance)


class _Scored:
    """Scores of the layers swept so far, for a sweep that was cut off: one file, which process 0 reads and writes."""

    def __init__(self, path: pathlib.Path, provenance: Provenance, layers: int) -> None:
        self._path, self._origin = path, provenance
        scores = np.full((layers, 2), np.nan)
        if jax.process_index() == 0 and path.exists():
            about = unsealed(json.loads(path.read_text(encoding="utf-8")), str(path))
            check_provenance(about, provenance, str(path))
            known = len(about["scores"])
            scores[:known] = about["scores"]
            log.info("%s: going on after layer %d, fingerprint holds", provenance.stage, known - 1)
        # As integers: JAX would round float64.
        bits = multihost_utils.broadcast_one_to_all(scores.view(np.uint32))
        self._scores = np.array(bits).view(np.float64)

    def has(self, layer: int) -> bool:
        return bool(np.isfinite(self._scores[layer]).all())

    def scores(self, layer: int) -> tuple[float, float]:
        return tuple(self._scores[layer].tolist())

    def add(self, layer: int, retrieval: float, sense: float) -> None:
        self._scores[layer] = retrieval, sense
        if jax.process_index() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            about = self._origin.description(scores=self._scores[: layer + 1].tolist())
            new.write_text(json.dumps(about), encoding="utf-8")
            new.replace(self._path)


def _scores(run: StageConfig, prepared: Prepared, subject: EvalModel) -> Report:
    """Retrieval by the catalogue where the text has one, else by codes stated in words; likelihood of held-out text."""
    assert isinstance(run.method, SelectConfig)
    rows, length, text = run.method.rows, run.data.context_length, prepared.tokens("heldout")
    if run.data.needles is None:
        found = passkey_retrieval(
            subject,
            prepared.tokenizer(),
            text,
            length=length,
            num_rows=rows,
            num_statements=PASSKEYS,
            seed=run.seed,
        )
    else:
        found = retrieval(
            subject,
            run.data.needles.catalogue,
            text,
            length=length,
            num_rows=rows,
            num_needles=run.data.needles.max_needles,
            queries=run.data.needles.queries,
            seed=run.seed,
        )
    size = run.data.sequences_per_step
    batches = heldout_batches(prepared, length, size, reset_documents=run.data.reset_documents)
    return found + held_out(subject, itertools.islice(batches, max(1, rows // size)))
