"""Kernels of a stage that are fitted in closed form; those of a stage that was cut off are kept."""

import logging
from collections.abc import Callable

import jax

from hypenet_jax import runtime
from hypenet_jax.convert.inputs import Inputs
from hypenet_jax.halo.method import Fitted
from hypenet_jax.train.errors import Preempted
from hypenet_jax.train.metrics import Metrics, MetricsFile
from hypenet_jax.train.progress import ProgressDisplay
from hypenet_jax.train.provenance import Provenance, check_provenance
from hypenet_jax.train.stage_output import read_metadata, read_tree, save_params

log = logging.getLogger("hypenet_jax")

FITS, RECORDS = "fits", "fits.jsonl"


class Fits:
    """One kernel after another, see `halo.method.Fit`: `fits/NUMBER` keeps it, fits.jsonl its errors."""

    def __init__(self, inputs: Inputs, provenance: Provenance, stop: Callable[[int], bool]) -> None:
        self._config, self._provenance, self._stop = inputs.config, provenance, stop
        self._metrics: Metrics | None = None

    def __call__(
        self, number: int, count: int, kernel: jax.Array, solve: Callable[[], Fitted]
    ) -> jax.Array:
        """The kernel that an earlier call left, else the one that `solve` returns.

        Raises:
          CheckpointError: the kernel belongs to another run.
          CorruptCheckpoint: it is not what was written.
          Preempted: `stop` said so.
        """
        folder, name = self._config.folder / FITS / str(number), self._config.name
        if runtime.broadcast(folder.exists()):
            metadata = read_metadata(folder)
            check_provenance(metadata, self._provenance, folder)
            shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=kernel.sharding)
            return read_tree(folder, "params", {"kernel": shape}, metadata["leaves"])["kernel"]
        if self._metrics is None:
            self._metrics = self._open(number, count)
        fitted, values = solve()
        self._metrics.write(number + 1, "fit", values)
        self._metrics.flush()
        save_params(folder, {"kernel": fitted}, self._provenance)
        if number + 1 == count:
            self.close()  # a terminal has one bar at a time, and training may follow
        if self._stop(number + 1):
            raise Preempted(f"{name}: stopped after fit {number + 1} of {count}; it is kept")
        return fitted

    def close(self) -> None:
        """Ends the records."""
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = None

    def _open(self, number: int, count: int) -> Metrics:
        config = self._config
        if number:
            log.info(
                "%s: going on after fit %d of %d, fingerprint holds", config.name, number, count
            )
        file = MetricsFile(config.folder / RECORDS)
        metrics = Metrics(file, ProgressDisplay(count, config.name))
        metrics.resume(number)
        return metrics
