"""The process: joining the others and agreeing with them, logging, seeds, signals, exit codes."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import logging
import os
import pathlib
import pickle
import platform
import signal
import socket
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hypenet_jax.fingerprint import digest

FINISHED, BUG, BAD_CONFIG, DOES_NOT_FIT, NUMERICS, BAD_DATA, PREEMPTED = 0, 1, 2, 3, 4, 5, 42
"""Exit codes. 42 asks the scheduler for a restart with the same command; the others do not."""

LOST = 134
"""Another process was lost; also the code that JAX exits with when it notices this itself (SIGABRT)."""

# A process that fails alone must not wait long for the others: they wait for it.
SECONDS_TO_LEAVE = 10
_NAME_BYTES, _DIGEST_BYTES = 64, 32

log = logging.getLogger("hypenet_jax")


class ProcessesDiffer(ValueError):
    """The processes of a run were not started with the same config, code or data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """How this process finds the other processes.

    Attributes:
      coordinator: HOST:PORT of process 0; this and the next two together, or none where they can be detected.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      join_seconds: how long a process waits for the others at the start.
      heartbeat_seconds: silence after which a process counts as lost and the others end.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_seconds: int = 300
    heartbeat_seconds: int = 60

    def __post_init__(self) -> None:
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(value is not None for value in given) and None in given:
            raise ValueError(
                f"{self}: coordinator, num_processes and process_id must be given together, or none of them"
            )


def join_processes(cluster: Cluster) -> None:
    """Joins the processes of this run, before any other use of JAX; does nothing for a single process.

    Given addresses are used as they are; otherwise JAX detects the cluster (SLURM, TPU pod, GKE, Open MPI).

    Raises:
      RuntimeError: the other processes did not connect in time.
    """
    # JAX's own detection, called for its values: `initialize` uses them without reporting them.
    from jax._src.clusters import ClusterEnv

    coordinator, count, process = cluster.coordinator, cluster.num_processes, cluster.process_id
    devices = None
    if coordinator is None:
        coordinator, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, cluster.join_seconds
        )
    if coordinator is None or count == 1:
        return
    # Printed beforehand, because JAX ends the whole process on a timeout.
    _say(
        f"process {process} of {count}: waiting up to {cluster.join_seconds} s "
        f"for all {count} processes at {coordinator}"
    )
    jax.distributed.initialize(
        coordinator,
        count,
        process,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=cluster.join_seconds,
        heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        shutdown_timeout_seconds=cluster.heartbeat_seconds + 5,
    )


def reason(error: Exception) -> str:
    """Kind of an error, and the first line of what it says: TensorStore appends many kilobytes of its settings."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:400]


def meet(where: str) -> None:
    """Barrier: returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def broadcast(value: Any) -> Any:
    """The value of process 0, on every process; anything that pickle can serialise."""
    if jax.process_count() == 1:
        return value
    sent = pickle.dumps(value) if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    room = 1 << (size - 1).bit_length()  # the sum over processes compiles for every size
    padded = np.frombuffer(sent.ljust(room, b"\0"), np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def check_agreement(**values: Any) -> None:
    """Checks that all processes hold the same values, anything JSON can hold, by exchanging their hashes.

    Raises:
      ProcessesDiffer: on every process, naming those that differ from process 0, their hosts and the values.
    """
    if jax.process_count() == 1:
        return
    digests = bytes.fromhex("".join(map(digest, values.values())))
    name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    local = np.frombuffer(name + digests, np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(local))
    hosts = [bytes(row[:_NAME_BYTES]).rstrip(b"\0").decode() for row in everyone]
    parts = everyone[:, _NAME_BYTES:].reshape(len(everyone), len(values), _DIGEST_BYTES)
    lines = [
        f"process {process} on {hosts[process]} has another {' and '.join(different)} "
        f"than process 0 on {hosts[0]}"
        for process, same in enumerate((parts == parts[0]).all(axis=-1))
        if (different := [key for key, equal in zip(values, same, strict=True) if not equal])
    ]
    if lines:
        raise ProcessesDiffer(
            f"{'; '.join(lines)}; start the same command on the same code and files everywhere"
        )


def code_version() -> dict[str, str]:
    """Identifies the code of this process: a hash of our sources, and versions of Python and JAX."""
    here = pathlib.Path(__file__).parent
    sources = hashlib.sha256()
    for package in (here, here.parent / "pallas_kernels"):
        for path in sorted(package.rglob("*.py")):
            sources.update(path.relative_to(here.parent).as_posix().encode() + path.read_bytes())
    return {
        "sources": sources.hexdigest(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
    }


def set_up_logging() -> None:
    """Process 0 logs from INFO, rich on a terminal and plain lines elsewhere; the others from WARNING."""
    first = jax.process_index() == 0
    if first and sys.stderr.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        process = "" if first else f" process {jax.process_index()}"
        handler.setFormatter(logging.Formatter(f"%(asctime)s{process} %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if first else logging.WARNING)
    log.propagate = False


def keys(seed: int) -> Callable[[str], jax.Array]:
    """Random keys by name: keys(0)("init") is the same on every machine and independent of other names."""
    root = jax.random.key(seed)
    return lambda name: jax.random.fold_in(root, zlib.crc32(name.encode()))


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """Yields stop(step), which returns True once this process has received SIGTERM.

    With several processes JAX's preemption service receives the signal, and all return True at the same step.
    """
    if jax.process_count() > 1:
        # Steps restart with every stage, but the service needs increasing numbers, so that a signal late in one stage
        # stops the next. It treats 0 as before the first call.
        calls = itertools.count(1)
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def main_guard(codes: Mapping[type[Exception], int]) -> Iterator[None]:
    """Ends a command: known exceptions print a message without traceback and exit with their code, others are bugs (1).

    With several processes, a known error of this one alone ends it after SECONDS_TO_LEAVE, and an unknown one caused
    by the loss of another process exits with LOST.

    Args:
      codes: exception class to exit code; subclasses count, the first match wins.
    """
    try:
        yield
    except Exception as error:
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), BUG)
        if out_of_memory(error):
            code = DOES_NOT_FIT
        if code == BUG:
            traceback.print_exc()
        else:
            _say(f"{type(error).__name__}: {error}")
        raise SystemExit(_left(code)) from error


def out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _left(code: int) -> int:
    """The exit code of a process alone; one of several exits here, once the others exit or time is up."""
    if not jax.distributed.is_initialized():
        return code
    failures: list[Exception] = []

    def leave() -> None:
        try:
            jax.distributed.shutdown()
        except Exception as error:
            failures.append(error)

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    # A lost process looks like a bug here until its heartbeat is missed, and that decides about a restart.
    leaving.join(None if code == BUG else SECONDS_TO_LEAVE)
    lost = code == BUG and (leaving.is_alive() or bool(failures))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by raising: the interpreter would wait for threads of collectives whose other side is gone.
    os._exit(LOST if lost else code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
