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

import jax
import numpy as np

from pallas_kernels.bench.measure import QUEUED_CALLS, Case, Contender, Mode, errors_of

logger = logging.getLogger(__name__)

OP = "lightning_attention"
ARRAYS = ("q", "k", "v", "state", "d_out", "d_state")  # as a case has them; some have no state
WORKER = pathlib.Path(__file__).with_name("fla_worker.py")


class CannotRunError(RuntimeError):
    """PyTorch, a CUDA device or fla is missing, and which."""


@contextlib.contextmanager
def started(python: str, *, upcast: bool = False) -> Iterator["Fla"]:
    """fla in a process of that interpreter, until the end of the block.

    Args:
      upcast: casts q, k, v to float32 and the outputs back, as HALO's own code calls it.
    """
    command = [python, str(WORKER), *(["--upcast"] if upcast else [])]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
        self._send(do="compile", **_place(case, mode))

    def contender(self, case: Case, mode: Mode) -> Contender:
        """What was begun, its errors taken on the case's own small inputs."""
        compiled, place = self._read(), _place(case, mode)
        ready = self._ask(do="prepare", calls=QUEUED_CALLS, **place)
        found = f"{compiled['variants']} variants compiled in {compiled['seconds']:.1f} s"
        logger.info("fla: %s, tuned in %.1f s", found, ready["seconds"])
        return Contender(self._sample, self._errors(case, mode), ready["temporaries"])

    def _errors(self, case: Case, mode: Mode) -> dict[str, float]:
        path = self._folder / "arrays.npz"
        given = [*case.small().arrays, *jax.tree.leaves(case.small().cotangent)]
        names = ARRAYS if len(given) == len(ARRAYS) else [x for x in ARRAYS if "state" not in x]
        arrays: dict[str, Any] = {
            name: np.asarray(x, np.float32) for name, x in zip(names, given, strict=True)
        }
        np.savez(path, **arrays)
        self._ask(do="check", path=str(path), mode=mode.name, dtype=case.dtype)
        with np.load(path) as results:
            return errors_of(case, mode, [results[name] for name in mode.outputs])

    def _sample(self) -> float:
        return self._ask(do="time")["milliseconds"]

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
            raise CannotRunError(answer["cannot"])
        return answer


def _place(case: Case, mode: Mode) -> dict[str, Any]:
    shape = jax.eval_shape(lambda: case.make_inputs(0)).arrays[0].shape
    return {"shape": shape, "mode": mode.name, "dtype": case.dtype}
