"""Runs chunk_simple_gla of flash-linear-attention for `against_fla.py`; no JAX in this process.

Started as a file, so that the interpreter needs PyTorch, Triton and fla-core and nothing of this
package, with the number of a pipe. The versions go through it first; then a name of `Worker`'s methods
with its arguments asks, and its result answers, or a RuntimeError that says why there is none.

With `upcast`, every call casts q, k, v to float32 and the outputs back, as HALO's own code does.
"""

import concurrent.futures
import functools
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

WARM_UP = 3  # calls on the stream that is then recorded
BEYOND_CACHES = 256 << 20  # bytes of inputs that no cache holds
# Milliseconds that Triton times a variant, instead of 25 and 100: still tens of calls.
TUNING = {"warmup": 5, "rep": 20}


def main() -> None:
    """Says the versions, then answers until the other side ends."""
    connection = Connection(int(sys.argv[1]))
    try:
        worker = Worker()
        connection.send(worker.versions)
        while True:
            what, arguments = connection.recv()
            connection.send(getattr(worker, what)(**arguments))
    except EOFError:
        return
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


class Worker:
    """Holds what was prepared last, with and without upcast."""

    def __init__(self) -> None:
        import torch  # pyright: ignore[reportMissingImports] - this and below: of the other process

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        os.environ["FLA_CACHE_RESULTS"] = "0"  # variants chosen at other shapes, on disk
        import fla  # pyright: ignore[reportMissingImports]
        import triton  # pyright: ignore[reportMissingImports]
        from fla.ops.simple_gla import (  # pyright: ignore[reportMissingImports]
            chunk_simple_gla,
        )

        testing = triton.testing
        testing.do_bench = functools.partial(testing.do_bench, **TUNING)
        self.torch, self.triton = torch, triton
        self.attend = chunk_simple_gla
        libraries = {"torch": torch, "triton": triton, "fla": fla}
        self.versions = {name: str(x.__version__) for name, x in libraries.items()}
        self.pool = concurrent.futures.ThreadPoolExecutor()
        self.kernels: set[Any] = set()
        self.shape: Sequence[int] = ()
        self.prepared: dict[bool, tuple[Any, Any, int]] = {}  # graph, its inputs, its calls

    def compile(self, shape: Sequence[int], mode: str, dtype: str, upcast: bool) -> int:
        """Every variant that Triton will try, on all cores: by itself it compiles one after the other.

        Calls with every kernel compiled instead of run, so that the outputs are garbage.
        """
        if shape != self.shape:  # Triton chooses by types and widths, not by lengths
            for kernel in self.kernels:
                kernel.cache.clear()
        self.shape, variants = shape, []

        def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
            self.kernels.add(kernel)
            variants.extend(kernel.warmup(*args, **options))

        with (
            self.torch.autograd.set_multithreading_enabled(False),  # the next line is of a thread
            # A variant that cannot be compiled is left to the tuner, which passes over it.
            self.triton.AsyncCompileMode(self.pool, ignore_errors=True),
            mock.patch.object(self.triton.runtime.autotuner.Autotuner, "run", compile_only),
        ):
            self._call(mode, upcast, self._inputs(shape, mode, dtype))
        return len(variants)

    def prepare(
        self, shape: Sequence[int], calls: int, mode: str, dtype: str, upcast: bool
    ) -> dict[str, Any]:
        """Random inputs of a shape, for which Triton chooses among the variants.

        Then `calls` calls are recorded as a CUDA graph, which leaves out the time of the host.
        """
        torch = self.torch
        self.prepared.pop(upcast, None)  # frees the memory of the last one
        start = time.perf_counter()
        variants = self.compile(shape, mode, dtype, upcast)
        compiled = time.perf_counter()
        size = 4 * math.prod(shape) * (2 if dtype == "bfloat16" else 4)
        sets = [self._inputs(shape, mode, dtype) for _ in range(min(8, -(-BEYOND_CACHES // size)))]
        self._call(mode, upcast, sets[0])
        torch.cuda.synchronize()
        tuned = time.perf_counter()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._call(mode, upcast, sets[0])
            temporaries = self._temporaries(mode, upcast, sets[0])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                self._call(mode, upcast, sets[i % len(sets)])
        self.prepared[upcast] = graph, sets, calls
        return {
            "temporaries": temporaries,
            "compiled": f"{variants} variants compiled in {compiled - start:.1f} s",
            "tuned": f"tuned in {tuned - compiled:.1f} s",
        }

    def check(
        self, arrays: Mapping[str, Any], mode: str, dtype: str, upcast: bool
    ) -> dict[str, Any]:
        """Outputs and gradients for these arrays, with the variants chosen."""
        results = self._call(mode, upcast, self._tensors(arrays, dtype))
        return {name: x.detach().float().cpu().numpy() for name, x in results.items()}

    def milliseconds(self, upcast: bool) -> float:
        """Of a call, in one replay of the graph."""
        graph, _, calls = self.prepared[upcast]
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    def _call(self, mode: str, upcast: bool, given: dict[str, Any]) -> dict[str, Any]:
        """Outputs and gradients by name, of tensors by name."""
        q, k, v = (given[name] for name in "qkv")
        out, last = self.attend(
            *(x.float() if upcast else x for x in (q, k, v)),
            g_gamma=given["slopes"],
            scale=q.shape[3] ** -0.5,
            initial_state=given.get("state"),
            output_final_state="state" in mode,
        )
        out = out.to(q.dtype)
        results = {"o": out, "state": last} if "state" in mode else {"o": out}
        if "gradient" not in mode:
            return results
        names = [name for name in ("q", "k", "v", "state") if name in given]
        cotangents = [given[name] for name in ("d_out", "d_state") if name in given]
        gradients = self.torch.autograd.grad(
            [out, last][: len(cotangents)], [given[name] for name in names], cotangents
        )
        return results | {f"d{name}": x for name, x in zip(names, gradients, strict=True)}

    def _inputs(self, shape: Sequence[int], mode: str, dtype: str) -> dict[str, Any]:
        shapes = dict.fromkeys(("q", "k", "v", "d_out"), shape)
        if mode == "state+gradient":
            state = [shape[0], shape[2], shape[3], shape[3]]
            shapes |= {"state": state, "d_state": state}
        made = {name: self.torch.randn(x, device="cuda") for name, x in shapes.items()}
        for name in "qk":
            made[name] *= made[name].square().mean(-1, keepdim=True).rsqrt()
        return self._tensors(made, dtype)

    def _tensors(self, arrays: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """On the GPU, with the slopes; states are float32 whatever the tokens are."""
        torch, tensors = self.torch, {}
        for name, x in arrays.items():
            kind = torch.float32 if "state" in name else getattr(torch, dtype)
            tensors[name] = torch.as_tensor(x, device="cuda").to(kind).requires_grad_()
        heads = tensors["q"].shape[2]
        steps = torch.arange(1, heads + 1, device="cuda", dtype=torch.float32)
        return {**tensors, "slopes": -torch.exp2(-8 * steps / heads)}

    def _temporaries(self, mode: str, upcast: bool, given: dict[str, Any]) -> int:
        """Bytes that one call holds at most, beside its inputs and results."""
        memory = self.torch.cuda
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        results = self._call(mode, upcast, given)
        return memory.max_memory_allocated() - before - sum(x.nbytes for x in results.values())


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: `lightning` is a library's name too
    main()
