"""One stage from its config to its final weights, whatever its method; the same call goes on where it was cut off."""

import functools
import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.inputs import Inputs, open_inputs
from hypenet_jax.convert.models import exported_config, teacher_fingerprint
from hypenet_jax.convert.provenance import is_done, provenance_of
from hypenet_jax.convert.selection import LayerScores
from hypenet_jax.convert.training import train
from hypenet_jax.halo.method import Models, TrainedMethod, Weights, Work
from hypenet_jax.train.provenance import Provenance
from hypenet_jax.train.stage_output import save_params
from hypenet_jax.weights import save_hf

log = logging.getLogger("hypenet_jax")


def run_stage(config: StageConfig, *, stop: Callable[[int], bool] = lambda step: False) -> None:
    """Runs a stage and leaves `run_dir/name/final`; returns at once if that is there for this very config.

    Args:
      stop: called after every step or scored layer; True saves what is to save and raises Preempted.
    Raises:
      CheckpointError: the folder belongs to another config, or the stage before has not left its weights.
      Preempted: `stop` said so; everything is saved.
    """
    if is_done(config):
        log.info("%s: done before, %s", config.name, config.folder / "final")
        return
    inputs = open_inputs(config)
    parent, text = inputs.weights.fingerprint, inputs.prepared.text_fingerprint
    provenance = provenance_of(config, parent, teacher_fingerprint(config), text)
    params = config.method.run(StageWork(inputs, provenance, stop))
    _export(inputs, params)
    save_params(config.folder / "final", params, provenance)


def _export(inputs: Inputs, params: Params) -> None:
    """Writes the Hugging Face folder, with the tokenizer that the text was read with."""
    config = inputs.config
    if config.export is None:
        return
    if jax.process_index() == 0:
        # An interrupted start of this very stage may have left it.
        shutil.rmtree(config.hf_folder, ignore_errors=True)
    runtime.meet(f"nothing in {config.hf_folder}")
    tokenizer = inputs.prepared.folder
    model = exported_config(config)
    save_hf(config.hf_folder, model, params, dtype=config.export, tokenizer_from=tokenizer)


class StageWork(Work):
    """What a running stage is lent."""

    def __init__(self, inputs: Inputs, provenance: Provenance, stop: Callable[[int], bool]) -> None:
        self._inputs, self._provenance, self._stop = inputs, provenance, stop

    @property
    def models(self) -> Models:
        return self._inputs.models

    @property
    def weights(self) -> Weights:
        return self._inputs.weights

    @property
    def folder(self) -> pathlib.Path:
        return self._inputs.config.folder

    def train(self, method: TrainedMethod) -> Params:
        return train(method, self._inputs, self._provenance, stop=self._stop)

    def score(self, number: int, decoder: Any, params: Params, rows: int) -> tuple[float, float]:
        return self._scores(number, decoder, params, rows)

    @functools.cached_property
    def _scores(self) -> LayerScores:
        return LayerScores(self._inputs, self._provenance, self._stop)
