"""This side of `fla_worker.py`: fla's chunk_simple_gla as one more contender, in another process."""

import contextlib
import functools
import json
import logging
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from pallas_kernels.bench.measure import QUEUED_CALLS, Contender, errors_of, small_inputs
from pallas_kernels.bench.op import Case, Mode

logger = logging.getLogger(__name__)

OP = "lightning_attention"
ARRAYS, COTANGENTS = ("q", "k", "v", "state"), ("d_out", "d_state")  # as a case has them
WORKER = pathlib.Path(__file__).with_name("fla_worker.py")


class CannotRunError(RuntimeError):
    """PyTorch, a CUDA device or fla is missing, and which."""


@contextlib.contextmanager
def started(python: str) -> Iterator["Fla"]:
    """fla in a process of that interpreter, until the end of the block."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            yield Fla(process, pathlib.Path(folder))
        finally:
            process.kill()  # it may be compiling


class Fla:
    """A process with PyTorch: one JSON object per line asks, one answers.

    Raises:
      CannotRunError: what is missing, or why the process ended.
    """

    def __init__(self, process: subprocess.Popen[str], folder: pathlib.Path) -> None:
        self._process, self._folder = process, folder

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Of PyTorch, Triton and fla, once it has imported them."""
        return self._read()

    def begin(self, case: Case, mode: Mode) -> None:
        """Lets fla compile for the case's shape, and does not wait for it."""
        assert self.versions
        for place in _places(case, mode).values():
            self._send(do="compile", shape=case.shape, **place)

    def contenders(self, case: Case, mode: Mode) -> dict[str, Contender]:
        """What was begun, its errors taken on the case's own small inputs."""
        compiled = {name: self._read() for name in _places(case, mode)}
        contenders = {}
        for name, place in _places(case, mode).items():
            ready = self._ask(do="prepare", calls=QUEUED_CALLS, shape=case.shape, **place)
            found = "{variants} variants compiled in {seconds:.1f} s".format(**compiled[name])
            logger.info("%s: %s, tuned in %.1f s", name, found, ready["seconds"])
            errors = self._errors(case, mode, place)
            sample = functools.partial(self._milliseconds, place["upcast"])
            contenders[name] = Contender(sample, errors, ready["temporaries"])
        return contenders

    def _errors(self, case: Case, mode: Mode, place: dict[str, Any]) -> dict[str, float]:
        path = self._folder / "arrays.npz"
        given = small_inputs(case)
        names = *ARRAYS[: len(given.arrays)], *COTANGENTS[: len(given.cotangents)]
        arrays: dict[str, Any] = {
            name: np.asarray(x, np.float32)
            for name, x in zip(names, given.arrays + given.cotangents, strict=True)
        }
        np.savez(path, **arrays)
        self._ask(do="check", path=str(path), **place)
        with np.load(path) as results:
            return errors_of(case, mode, [results[x] for x in mode.outputs + mode.gradients])

    def _milliseconds(self, upcast: bool) -> float:
        return self._ask(do="time", upcast=upcast)["milliseconds"]

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._send(**request)
        return self._read()

    def _send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"cannot": f"exit code {self._process.wait()}"}
        if "cannot" in answer:
            raise CannotRunError(f"fla cannot run here: {answer['cannot']}")
        return answer


def _places(case: Case, mode: Mode) -> dict[str, dict[str, Any]]:
    """fla as it comes and, on tokens narrower than float32, as HALO's own code calls it."""
    names = {"fla": False} if case.dtype == "float32" else {"fla": False, "fla_upcast": True}
    place = {"mode": mode.name, "dtype": case.dtype}
    return {name: {**place, "upcast": upcast} for name, upcast in names.items()}
