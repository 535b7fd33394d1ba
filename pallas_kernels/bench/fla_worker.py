"""Runs chunk_simple_gla of flash-linear-attention for `against_fla.py`; no JAX in this process.

Started as a file, so that the interpreter needs PyTorch, Triton and fla-core and nothing of this
package. Its first line on stdout names the versions; then one JSON object per line asks, and one
answers:

  compile  every variant that Triton will try at a shape, on all cores: by itself it compiles one
           after the other
  prepare  random inputs of that shape: Triton chooses among the variants, then `calls` calls are
           recorded as a CUDA graph, which leaves out the time of the host
  check    runs the inputs in an .npz file, with the variants chosen, and writes the outputs back
           into it
  time     replays the graph once: milliseconds per call

With --upcast, every call casts q, k, v to float32 and the outputs back.
"""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import sys
import time
from typing import Any
from unittest import mock

WARM_UP = 3  # calls on the stream that is then recorded
BEYOND_CACHES = 256 << 20  # bytes of inputs that no cache holds
# Milliseconds that Triton times a variant, instead of 25 and 100: still tens of calls.
TUNING = {"warmup": 5, "rep": 20}


def main() -> None:
    """Answers one JSON request per line of standard input."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # of what the libraries print
        worker = _start(answers)
        for line in sys.stdin if worker else ():
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("do"))(**request)
            except Exception as error:  # the other side says it, and ends
                answer = {"cannot": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


def _start(answers: Any) -> "Worker | None":
    try:
        worker = Worker()
    except (ImportError, RuntimeError) as error:
        print(json.dumps({"cannot": str(error)}), file=answers, flush=True)
        return None
    print(json.dumps(worker.versions), file=answers, flush=True)
    return worker


class Worker:
    """Holds what was prepared last."""

    def __init__(self) -> None:
        import numpy
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
        self.numpy, self.torch, self.triton = numpy, torch, triton
        self.attend = chunk_simple_gla
        self.versions = {"torch": torch.__version__, "triton": triton.__version__}
        self.versions["fla"] = fla.__version__
        self.pool = concurrent.futures.ThreadPoolExecutor()
        self.kernels: set[Any] = set()
        self.shape: list[int] = []
        self.upcast = "--upcast" in sys.argv
        self.graph: Any = None

    def compile(self, shape: list[int], mode: str, dtype: str) -> dict[str, Any]:
        """Calls with every kernel compiled instead of run, so that the outputs are garbage."""
        if shape != self.shape:  # Triton chooses by types and widths, not by lengths
            for kernel in self.kernels:
                kernel.cache.clear()
        self.shape, start, variants = shape, time.perf_counter(), []

        def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
            self.kernels.add(kernel)
            variants.extend(kernel.warmup(*args, **options))

        with (
            self.torch.autograd.set_multithreading_enabled(False),  # the next line is of a thread
            # A variant that cannot be compiled is left to the tuner, which passes over it.
            self.triton.AsyncCompileMode(self.pool, ignore_errors=True),
            mock.patch.object(self.triton.runtime.autotuner.Autotuner, "run", compile_only),
        ):
            self._call(mode, **self._inputs(shape, mode, dtype))
        return {"variants": len(variants), "seconds": time.perf_counter() - start}

    def prepare(self, shape: list[int], calls: int, mode: str, dtype: str) -> dict[str, Any]:
        torch = self.torch
        self.graph = self.sets = None  # frees the memory of the last one
        size = 4 * math.prod(shape) * (2 if dtype == "bfloat16" else 4)
        sets = [self._inputs(shape, mode, dtype) for _ in range(min(8, -(-BEYOND_CACHES // size)))]
        start = time.perf_counter()
        self._call(mode, **sets[0])
        torch.cuda.synchronize()
        tuned = time.perf_counter() - start
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._call(mode, **sets[0])
            temporaries = self._temporaries(mode, sets[0])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                self._call(mode, **sets[i % len(sets)])
        self.graph, self.sets, self.calls = graph, sets, calls
        return {"temporaries": temporaries, "seconds": tuned}

    def check(self, path: str, mode: str, dtype: str) -> dict[str, Any]:
        with self.numpy.load(path) as arrays:
            given = {name: self._tensor(x, _dtype(name, dtype)) for name, x in arrays.items()}
        results = self._call(mode, **given, slopes=self._slopes(given["q"].shape[2]))
        self.numpy.savez(
            path, **{name: x.detach().float().cpu().numpy() for name, x in results.items()}
        )
        return {}

    def time(self) -> dict[str, float]:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return {"milliseconds": start.elapsed_time(end) / self.calls}

    def _call(
        self,
        mode: str,
        *,
        q: Any,
        k: Any,
        v: Any,
        d_out: Any,
        slopes: Any,
        state: Any = None,
        d_state: Any = None,
    ) -> dict[str, Any]:
        out, last = self.attend(
            *(x.float() if self.upcast else x for x in (q, k, v)),
            g_gamma=slopes,
            scale=q.shape[3] ** -0.5,
            initial_state=state,
            output_final_state="state" in mode,
        )
        out = out.to(q.dtype)
        results = {"o": out, "state": last} if "state" in mode else {"o": out}
        if "gradient" not in mode:
            return results
        outs, inputs, cotangents = [out], {"dq": q, "dk": k, "dv": v}, [d_out]
        if state is not None:
            outs, inputs, cotangents = [out, last], {**inputs, "dstate": state}, [d_out, d_state]
        gradients = self.torch.autograd.grad(outs, list(inputs.values()), cotangents)
        return results | dict(zip(inputs, gradients, strict=True))

    def _inputs(self, shape: list[int], mode: str, dtype: str) -> dict[str, Any]:
        q, k, v, d_out = (self.torch.randn(shape, device="cuda") for _ in range(4))
        q, k = (x * x.square().mean(-1, keepdim=True).rsqrt() for x in (q, k))
        made = {"q": q, "k": k, "v": v, "d_out": d_out}
        if mode == "state+gradient":
            batch, _, heads, width = shape
            memory = batch, heads, width, width
            made |= {name: self.torch.randn(memory, device="cuda") for name in ("state", "d_state")}
        tensors = {name: self._tensor(x, _dtype(name, dtype)) for name, x in made.items()}
        return tensors | {"slopes": self._slopes(shape[2])}

    def _slopes(self, heads: int) -> Any:
        steps = self.torch.arange(1, heads + 1, device="cuda", dtype=self.torch.float32)
        return -self.torch.exp2(-8 * steps / heads)

    def _temporaries(self, mode: str, given: dict[str, Any]) -> int:
        """Bytes that one call holds at most, beside its inputs and results."""
        memory = self.torch.cuda
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        results = self._call(mode, **given)
        return memory.max_memory_allocated() - before - sum(x.nbytes for x in results.values())

    def _tensor(self, x: Any, dtype: str) -> Any:
        made = self.torch.as_tensor(x, device="cuda").to(getattr(self.torch, dtype))
        return made.requires_grad_()


def _dtype(name: str, dtype: str) -> str:
    """Memories are float32 whatever the tokens are."""
    return "float32" if name in ("state", "d_state") else dtype


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: `lightning` is a library's name too
    main()
