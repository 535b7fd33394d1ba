"""fla as a contender of the benchmark: what its process is asked, and what is asked of Triton there.
Neither PyTorch nor Triton is needed: stand-ins take their places."""

import contextlib
import json
import sys
import types

import pytest

from pallas_kernels.bench import __main__ as command
from pallas_kernels.bench import against_fla, fla_worker, lightning, measure

# Answers as the worker does, writes down what it was asked, and ends after so many requests.
STAND_IN = """
import json, os, sys
import numpy as np
print(json.dumps({"torch": "0"}), flush=True)
for i, line in enumerate(sys.stdin):
    open(os.environ["ASKED"], "a").write(line)
    if i == int(os.environ["LAST"]):
        sys.exit(3)
    request = json.loads(line)
    if request["do"] == "check":
        with np.load(request["path"]) as arrays:
            results = {name: x for name, x in arrays.items()}
        results |= {"o": results["v"], "dq": results["q"], "dk": results["k"], "dv": results["v"]}
        np.savez(request["path"], **results)
    answer = {"variants": 51, "seconds": 1.0, "temporaries": 7, "milliseconds": 1e-6}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The file of requests to a stand-in of fla's process."""
    worker, path = tmp_path / "worker.py", tmp_path / "asked"
    worker.write_text(STAND_IN)
    monkeypatch.setattr(against_fla, "WORKER", worker)
    monkeypatch.setenv("ASKED", str(path))
    monkeypatch.setenv("LAST", "-1")
    monkeypatch.setattr(lightning, "SHAPES_ON_CPU", ((2, 40, 2, 8),))
    machine = measure.Machine(1e9, {"float32": 1e10})
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
    assert [row["temporaries"] for row in rows][0] == 7
    requests = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [x["do"] for x in requests] == ["compile", "prepare", "check", "time", "time"]
    for request in requests[:2]:
        assert request["shape"] == [2, 40, 2, 8]
    for request in requests[:3]:
        assert (request["mode"], request["dtype"]) == ("forward", "float32")


def test_what_was_measured_is_written_though_a_later_mode_fails(
    tmp_path, asked, monkeypatch, capsys
):
    monkeypatch.setenv("LAST", "6")  # the second mode's `prepare`
    with pytest.raises(SystemExit) as end:
        bench(tmp_path, "forward", "forward+gradient")
    assert end.value.code == 2
    assert capsys.readouterr().err == "fla cannot run here: exit code 3\n"
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["mode"] for row in content["rows"]] == ["forward", "forward"]
    assert content["versions"]["torch"] == "0"
