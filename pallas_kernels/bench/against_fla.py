"""This side of `fla_worker.py`: fla's chunk_simple_gla as one more contender, in another process."""

import contextlib
import functools
import logging
import multiprocessing
import pathlib
import subprocess
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pallas_kernels.bench.measure import QUEUED_CALLS, Contender, errors_of, small_inputs
from pallas_kernels.bench.op import Case, Mode

logger = logging.getLogger(__name__)

OP = "lightning_attention"
ARRAYS, COTANGENTS = ("q", "k", "v", "state"), ("d_out", "d_state")  # as a case has them
STDERR = 2  # what the libraries print
WORKER = pathlib.Path(__file__).with_name("fla_worker.py")


class CannotRunError(RuntimeError):
    """PyTorch, a CUDA device or fla is missing, and which."""


@contextlib.contextmanager
def started(python: str) -> Iterator["Fla"]:
    """fla in a process of that interpreter, until the end of the block."""
    ours, theirs = multiprocessing.Pipe()
    command = [python, str(WORKER), str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=STDERR) as process,
    ):
        theirs.close()  # so that its end is the end of the pipe
        try:
            yield Fla(ours, process)
        finally:
            process.kill()  # it may be compiling


class Fla:
    """A process with PyTorch that answers requests.

    Raises:
      CannotRunError: what is missing, or why the process ended.
    """

    def __init__(self, connection: Connection, process: subprocess.Popen[bytes]) -> None:
        self._connection, self._process = connection, process

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Of PyTorch, Triton and fla, once it has imported them."""
        return self._answer()

    def contenders(self, case: Case, mode: Mode) -> dict[str, Contender]:
        """fla as it comes and, on tokens narrower than float32, as HALO's own code calls it.

        Compiled and tuned for the case's shape, with errors on its small inputs.
        """
        assert self.versions
        contenders = {}
        for name in ("fla",) if case.dtype == "float32" else ("fla", "fla_upcast"):
            how = {"mode": mode.name, "dtype": case.dtype, "upcast": name == "fla_upcast"}
            ready = self._ask("prepare", shape=case.shape, calls=QUEUED_CALLS, **how)
            logger.info("%s: {compiled}, {tuned}".format(**ready), name)
            results = self._ask("check", arrays=_small_arrays(case), **how)
            errors = errors_of(case, mode, [results[x] for x in mode.outputs + mode.gradients])
            sample = functools.partial(self._ask, "milliseconds", upcast=how["upcast"])
            contenders[name] = Contender(sample, errors, ready["temporaries"])
        return contenders

    def _ask(self, what: str, **arguments: Any) -> Any:
        self._connection.send((what, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            answer = RuntimeError(f"exit code {self._process.wait()}")
        if isinstance(answer, RuntimeError):
            raise CannotRunError(f"fla cannot run here: {answer}")
        return answer


def _small_arrays(case: Case) -> dict[str, Any]:
    arrays, cotangents = small_inputs(case)
    names = *ARRAYS[: len(arrays)], *COTANGENTS[: len(cotangents)]
    given = zip(names, arrays + cotangents, strict=True)
    return {name: np.asarray(x, np.float32) for name, x in given}
