"""Runs chunk_simple_gla of flash-linear-attention for `against_fla.py`; no JAX in this process.

Started as a file, so that the interpreter needs PyTorch, Triton and fla-core and nothing of this
package. Its first line on stdout names the versions; then one JSON object per line asks, and one
answers:

  check    runs the inputs in an .npz file and writes the outputs back into it
  prepare  random inputs of a shape: autotunes, then records `calls` calls as a CUDA graph, which
           leaves out the time of the host
  time     replays the graph once: milliseconds per call
"""

import contextlib
import json
import math
import sys
from typing import Any

WARM_UP = 5  # calls, which settle what Triton tunes
BEYOND_CACHES = 256 << 20  # bytes of inputs that no cache holds


def main() -> None:
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
        import torch  # pyright: ignore[reportMissingImports]

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        import fla  # pyright: ignore[reportMissingImports] - of the other process
        import triton  # pyright: ignore[reportMissingImports]
        from fla.ops.simple_gla import (  # pyright: ignore[reportMissingImports]
            chunk_simple_gla,
        )

        self.numpy, self.torch, self.attend = numpy, torch, chunk_simple_gla
        self.versions = {"torch": torch.__version__, "triton": triton.__version__}
        self.versions["fla"] = fla.__version__
        self.graph: Any = None

    def check(self, path: str, mode: str, dtype: str) -> dict[str, Any]:
        with self.numpy.load(path) as arrays:
            q, k, v, d_out = (self._tensor(arrays[x], dtype) for x in ("q", "k", "v", "d_out"))
        results = self._call(q, k, v, d_out, mode)
        self.numpy.savez(
            path, **{name: x.detach().float().cpu().numpy() for name, x in results.items()}
        )
        return {}

    def prepare(self, shape: list[int], calls: int, mode: str, dtype: str) -> dict[str, Any]:
        torch = self.torch
        self.graph = None  # frees the memory of the last one
        size = 4 * math.prod(shape) * (2 if dtype == "bfloat16" else 4)
        sets = [self._inputs(shape, dtype) for _ in range(min(8, -(-BEYOND_CACHES // size)))]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._call(*sets[0], mode=mode)
        torch.cuda.current_stream().wait_stream(stream)
        temporaries = torch.cuda.max_memory_allocated() - before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                self._call(*sets[i % len(sets)], mode=mode)
        self.graph, self.sets, self.calls = graph, sets, calls
        return {"temporaries": temporaries}

    def time(self) -> dict[str, float]:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return {"milliseconds": start.elapsed_time(end) / self.calls}

    def _call(self, q: Any, k: Any, v: Any, d_out: Any, mode: str) -> dict[str, Any]:
        heads = q.shape[2]
        steps = self.torch.arange(1, heads + 1, device=q.device, dtype=self.torch.float32)
        out, state = self.attend(
            *(q, k, v),
            g_gamma=-self.torch.exp2(-8 * steps / heads),
            scale=q.shape[3] ** -0.5,
            output_final_state=mode == "forward+state",
        )
        if mode == "forward+state":
            return {"o": out, "state": state}
        if mode == "forward":
            return {"o": out}
        gradients = self.torch.autograd.grad(out, (q, k, v), d_out)
        return {"o": out, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}

    def _inputs(self, shape: list[int], dtype: str) -> list[Any]:
        q, k, v, d_out = (self.torch.randn(shape, device="cuda") for _ in range(4))
        q, k = (x * x.square().mean(-1, keepdim=True).rsqrt() for x in (q, k))
        return [self._tensor(x, dtype) for x in (q, k, v, d_out)]

    def _tensor(self, x: Any, dtype: str) -> Any:
        made = self.torch.as_tensor(x, device="cuda").to(getattr(self.torch, dtype))
        return made.requires_grad_()


if __name__ == "__main__":
    main()
