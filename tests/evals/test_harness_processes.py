"""Two processes with half the devices each: the first runs the harness, both compute, the scores are those of one."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from harness_folder import write_folder

from hypenet_jax.evals.report import Report, report_from_json_lines

pytestmark = [pytest.mark.harness, pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = pathlib.Path(__file__).with_name("harness_processes.py")
ROOT = pathlib.Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return write_folder(tmp_path_factory.mktemp("harness") / "m", begins_texts=False)


@pytest.fixture
def evaluate(folder, tmp_path):
    """evaluate(processes, *words): exit codes and outputs of each."""
    members: list[subprocess.Popen[str]] = []

    def run(count: int, *words: str) -> tuple[list[int], list[tuple[str, str]]]:
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment |= {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        port = str(free_port())
        group = [
            subprocess.Popen(
                [sys.executable, SCRIPT, port, str(count), str(process), folder, *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(count)
        ]
        members.extend(group)
        outputs = [member.communicate(timeout=400) for member in group]
        return [member.returncode for member in group], outputs

    yield run
    for member in members:
        member.kill()
        member.wait()


def report_in(output: str) -> Report:
    return report_from_json_lines(output.split("report\n")[1].split("\n", 1)[1])


def test_two_processes_find_the_scores_of_one_and_both_know_them(evaluate):
    codes, [(alone, said)] = evaluate(1, "1")
    assert codes == [0], said
    codes, outputs = evaluate(2, "2")
    assert codes == [0, 0], outputs
    one, first, second = (report_in(text) for text in (alone, *(out for out, _ in outputs)))
    assert first == second
    assert [row.key for row in first.rows] == [row.key for row in one.rows]
    values = [[row.value for row in report.rows] for report in (first, one)]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_an_error_of_the_first_process_ends_the_other_too(evaluate):
    codes, outputs = evaluate(2, "2", "no_such_task")
    assert codes == [1, 1], outputs
    assert "no_such_task" in outputs[0][1]
    assert "ValueError: lm-evaluation-harness: " in outputs[1][1]
