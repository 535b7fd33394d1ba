"""The process: joining the others, logging, seeds, signals, exit codes. Imports nothing of ours."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping

import jax

FINISHED, BUG, BAD_CONFIG, DOES_NOT_FIT, NUMERICS, BAD_DATA, PREEMPTED = 0, 1, 2, 3, 4, 5, 42
"""Exit codes. 42 asks the scheduler for a restart with the same command; the others do not."""

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How this process finds the others when nothing can be detected; all three or none."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = [value is not None for value in dataclasses.astuple(self)]
        if any(given) and not all(given):
            raise ValueError(
                f"{self}: coordinator, num_processes and process_id must be given together, "
                "or none of them"
            )


def join_processes(cluster: Cluster) -> None:
    """Joins the processes of this run, before any other use of JAX; a single process stays alone.

    Given addresses are used as they are; otherwise JAX detects the cluster (SLURM, TPU pod, GKE,
    Open MPI).
    """
    if cluster.coordinator is not None:
        jax.distributed.initialize(cluster.coordinator, cluster.num_processes, cluster.process_id)
    elif _cluster_detected():
        jax.distributed.initialize()


def _cluster_detected() -> bool:
    names = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return any(name in os.environ for name in names) or len(hosts) > 1


def set_up_logging() -> None:
    """Process 0 logs from INFO, rich on a terminal and plain lines elsewhere; the others from
    WARNING.
    """
    first = jax.process_index() == 0
    if first and sys.stderr.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        where = "" if first else f" process {jax.process_index()}"
        handler.setFormatter(logging.Formatter(f"%(asctime)s{where} %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if first else logging.WARNING)
    log.propagate = False


def keys(seed: int) -> Callable[[str], jax.Array]:
    """Named random keys of one seed: keys(0)("init") is the same on every machine and independent
    of other names.
    """
    root = jax.random.key(seed)
    return lambda name: jax.random.fold_in(root, zlib.crc32(name.encode()))


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """Gives stop(step): has this run been asked to end? Single process: SIGTERM was received here.

    With several processes JAX's preemption service catches the signal and all of them answer True
    at the same step.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def main_guard(codes: Mapping[type[Exception], int]) -> Iterator[None]:
    """Ends a main: known exceptions become one screen without traceback and their exit code, others
    stay bugs (1).

    Args:
      codes: exception class to exit code; subclasses count, the first match wins.
    """
    try:
        yield
    except Exception as error:
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), BUG)
        if code == BUG:
            traceback.print_exc()
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(code) from error
