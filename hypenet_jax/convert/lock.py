"""One run at a time in a run directory."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import TextIO

import jax

from hypenet_jax import runtime

log = logging.getLogger("hypenet_jax")

# A file server gives back the locks of a host that is gone after its lease, 90 s on most.
SECONDS_FOR_ANOTHER_HOST = 120


class InUse(ValueError):
    """Another living process works in the run directory."""


@contextlib.contextmanager
def sole_use(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps every other run out of this directory until the end of the block or of process 0, kill -9 included.

    Process 0 holds a POSIX lock on `run_dir/lock`: it works over NFS too, and the system takes it back from a process
    that is gone. Of a host that is gone it may outlive the process, so a holder on another host is waited for.

    Raises:
      InUse: on every process, naming the holder.
    """
    with contextlib.ExitStack() as until_end:
        first = jax.process_index() == 0
        holder = runtime.broadcast(_take(pathlib.Path(run_dir), until_end) if first else None)
        if holder is not None:
            raise InUse(
                f"{run_dir} is in use by {holder}; wait for it, end it, or name another run_dir"
            )
        yield


def _take(run_dir: pathlib.Path, until_end: contextlib.ExitStack) -> str | None:
    """None once the lock is ours, else who has it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = until_end.enter_context((run_dir / "lock").open("a+", encoding="utf-8"))
    end, said = time.monotonic() + SECONDS_FOR_ANOTHER_HOST, False
    while not _locked(file):
        host, holder = _noted(file)
        if host == socket.gethostname() or time.monotonic() > end:
            return holder
        if not said:
            wait = SECONDS_FOR_ANOTHER_HOST
            log.warning("%s is in use by %s: waiting up to %d s", run_dir, holder, wait)
        said = True
        time.sleep(1)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}))
    file.flush()
    return None


def _locked(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning("%s: no locks on this file system (%s); start one run only", file.name, error)
    return True


def _noted(file: TextIO) -> tuple[str | None, str]:
    """(host, the holder in words) as the holder noted it; it may be about to."""
    file.seek(0)
    try:
        note = json.loads(file.read())
    except json.JSONDecodeError:
        return None, "another process"
    return note["host"], f"process {note['pid']} on {note['host']} since {note['since']}"
