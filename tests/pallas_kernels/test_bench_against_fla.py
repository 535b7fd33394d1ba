"""fla as a contender of the benchmark: what its process is asked, and what is asked of Triton there.
Neither PyTorch nor Triton is needed: stand-ins take their places."""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import types
from typing import Any, NamedTuple

import pytest

from pallas_kernels.bench import __main__ as command
from pallas_kernels.bench import against_fla, cases, fla_worker, lightning, measure
from pallas_kernels.bench.op import Op

pytestmark = pytest.mark.brief

# Answers as the worker does, writes down what it was asked, and ends after so many requests.
STAND_IN = """
import json, os, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send({"torch": "0"})
for i in range(100):
    what, arguments = connection.recv()
    arrays = arguments.pop("arrays", None)
    print(json.dumps({"do": what, **arguments}), file=open(os.environ["ASKED"], "a"))
    if i == int(os.environ["LAST"]):
        sys.exit(3)
    if what == "check":
        arrays = {"o": arrays["v"], "dq": arrays["q"], "dk": arrays["k"], "dv": arrays["v"]}
    prepared = {"compiled": "51 variants", "tuned": "in 1 s", "temporaries": 7}
    connection.send({"prepare": prepared, "check": arrays, "milliseconds": 1e-6}[what])
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The file of requests to a stand-in of fla's process."""
    worker, path = tmp_path / "worker.py", tmp_path / "asked"
    worker.write_text(STAND_IN)
    monkeypatch.setattr(against_fla, "WORKER", worker)
    monkeypatch.setenv("ASKED", str(path))
    monkeypatch.setenv("LAST", "-1")
    small = dataclasses.replace(lightning.WHOLE_ROWS, cpu_shapes=((2, 40, 2, 8),))
    monkeypatch.setattr(cases, "OPS", (small,))
    machine = measure.Machine(1e9, {"float32": 1e10, "bfloat16": 1e10})
    monkeypatch.setattr(command, "measure_machine", lambda rounds: machine)
    return path


def bench(tmp_path, *modes):
    path = tmp_path / "rows.json"
    arguments = ["--implementations", "chunked", "--rounds", "2", "--json", str(path)]
    command.main(["lightning_attention", "--against", "fla", *arguments, "--modes", *modes])
    return path


def test_fla_compiles_for_the_shape_that_is_timed_is_tuned_there_and_only_then_checked(
    tmp_path, asked
):
    rows = json.loads(bench(tmp_path, "forward").read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["fla", "chunked"]
    assert rows[0]["temporaries"] == 7
    requests = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [x["do"] for x in requests] == ["prepare", "check", "milliseconds", "milliseconds"]
    assert requests[0]["shape"] == [2, 40, 2, 8]
    for request in requests[:2]:
        assert (request["mode"], request["dtype"]) == ("forward", "float32")


def test_bfloat16_is_also_compared_with_fla_as_the_official_code_calls_it(
    tmp_path, asked, monkeypatch
):
    as_on_a_cpu = Op.cases
    monkeypatch.setattr(
        Op, "cases", lambda op: [dataclasses.replace(x, dtype="bfloat16") for x in as_on_a_cpu(op)]
    )
    rows = json.loads(bench(tmp_path, "forward").read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["fla", "fla_upcast", "chunked"]


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...] = (1, 2, 3, 4)

    def to(self, dtype):
        return Tensor(dtype)

    def float(self):
        return Tensor("float32")


def test_the_official_code_casts_tokens_to_float32_and_outputs_back(worker):
    made, _ = worker
    taken = []

    def attend(*tokens, output_final_state, **rest):
        taken.extend(x.dtype for x in tokens)
        return Tensor("float32"), Tensor("float32")

    made.attend = attend
    half = Tensor("bfloat16")
    given = {"q": half, "k": half, "v": half, "d_out": half, "slopes": None}
    results = fla_worker.Worker._call(made, "forward+state", True, given)
    assert taken == ["float32"] * 3
    assert (results["o"].dtype, results["state"].dtype) == ("bfloat16", "float32")


def test_what_was_measured_is_written_though_a_later_mode_fails(
    tmp_path, asked, monkeypatch, capsys
):
    monkeypatch.setenv("LAST", "4")  # the second mode's `prepare`
    with pytest.raises(SystemExit) as end:
        bench(tmp_path, "forward", "forward+state")
    assert end.value.code == 2
    assert capsys.readouterr().err == "fla cannot run here: exit code 3\n"
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["mode"] for row in content["rows"]] == ["forward", "forward"]
    assert content["versions"]["torch"] == "0"


class Autotuner:
    """Three variants that compile only all at once, and what was chosen for some types."""

    active: Any = None  # the mode that compiles in threads

    def __init__(self):
        self.cache, self.compiled = {}, 0
        self.together = threading.Barrier(3, timeout=20)

    def run(self, *tensors, warmup, grid):
        raise AssertionError("a kernel ran")

    def warmup(self, *tensors, grid):
        def compile_one():
            self.together.wait()
            self.compiled += 1

        return [Autotuner.active.submit(compile_one) for _ in range(3)]


@contextlib.contextmanager
def async_compile_mode(pool, *, ignore_errors):
    assert ignore_errors
    Autotuner.active = pool
    yield
    Autotuner.active = None


@pytest.fixture
def worker(monkeypatch):
    """The other process's side, with stand-ins of PyTorch, Triton and fla, and two kernels."""
    torch = types.SimpleNamespace(
        __version__="0",
        cuda=types.SimpleNamespace(is_available=lambda: True),
        autograd=types.SimpleNamespace(set_multithreading_enabled=contextlib.nullcontext),
    )
    autotuner = types.SimpleNamespace(Autotuner=Autotuner)
    triton = types.SimpleNamespace(
        __version__="0",
        testing=types.SimpleNamespace(do_bench=lambda call, warmup=25, rep=100: (warmup, rep)),
        runtime=types.SimpleNamespace(autotuner=autotuner),
        AsyncCompileMode=async_compile_mode,
    )
    simple_gla = types.SimpleNamespace(chunk_simple_gla=None)
    stand_ins = {"torch": torch, "triton": triton, "fla.ops.simple_gla": simple_gla}
    stand_ins |= {"fla": types.SimpleNamespace(__version__="0"), "fla.ops": types.ModuleType("ops")}
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("FLA_CACHE_RESULTS", "1")
    made = fla_worker.Worker()
    kernels = Autotuner(), Autotuner()
    monkeypatch.setattr(made, "_inputs", lambda *place: {})
    monkeypatch.setattr(made, "_call", lambda *call: [k.run(warmup=False, grid=1) for k in kernels])
    return made, kernels


def test_all_variants_compile_at_the_same_time_and_no_kernel_runs(worker):
    made, kernels = worker
    assert made.compile([1, 64, 2, 8], "forward", "bfloat16", False) == 6
    made.pool.shutdown()
    assert [kernel.compiled for kernel in kernels] == [3, 3]
    with pytest.raises(AssertionError, match="a kernel ran"):
        kernels[0].run(warmup=False, grid=1)


def test_variants_chosen_at_another_shape_are_forgotten_and_those_of_this_one_kept(worker):
    made, kernels = worker
    made.compile([1, 64, 2, 8], "forward", "bfloat16", False)
    for kernel in kernels:
        kernel.cache["bfloat16"] = "a variant"
    made.compile([1, 64, 2, 8], "forward+gradient", "bfloat16", False)
    assert [kernel.cache for kernel in kernels] == 2 * [{"bfloat16": "a variant"}]
    made.compile([1, 128, 2, 8], "forward", "bfloat16", False)
    assert [kernel.cache for kernel in kernels] == [{}, {}]


def test_triton_measures_each_variant_for_a_shorter_time_and_reads_no_choice_from_disk(worker):
    assert sys.modules["triton"].testing.do_bench(None) == (5, 20)
    assert os.environ["FLA_CACHE_RESULTS"] == "0"
