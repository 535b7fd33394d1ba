"""slurm.sbatch under a real SLURM: two tasks that are preempted, and a job that reaches its time limit."""

import pathlib
import re
import sys
import time

import pytest
import slurm_node
from processes import HALO, ROOT, environment

from hypenet_jax.train.metrics import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(slurm_node.MISSING), reason=f"not installed: {slurm_node.MISSING}"),
]

STEPS = 60
TWO_TASKS = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0"]
SCRIPT = str(ROOT / "launch" / "slurm.sbatch")
# Saves when it is told to; finishes when it is started again.
STAND_IN = """#!/usr/bin/env bash
echo "task $SLURM_PROCID, start ${SLURM_RESTART_COUNT:-0}"
if [[ ${SLURM_RESTART_COUNT:-0} == 1 ]]; then exit 0; fi
trap 'echo "task $SLURM_PROCID saved"; exit 42' TERM
while true; do sleep 0.2; done
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with slurm_node.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def wait_for(log: pathlib.Path, text: str, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not log.exists() or text not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def test_a_preempted_job_saves_is_queued_again_and_finishes(node, text, tmp_path):
    log, run_dir = tmp_path / "job.log", tmp_path / "run"
    command = ["launch.halo", HALO[-1], "--text", str(text), "--run-dir", str(run_dir)]
    options = [*TWO_TASKS, "--time=20", f"--output={log}", f"--chdir={ROOT}"]
    job = node.submit(
        *options,
        *(SCRIPT, *command, "--only", "teacher", "--teacher-steps", str(STEPS)),
        **environment(devices=4),
        PYTHON=sys.executable,
    )
    wait_for(log, "teacher step 1/")
    urgent = node.submit("--partition=urgent", "--output=/dev/null", "--wrap=true")
    assert node.wait(urgent, 60)["JobState"] == "COMPLETED"
    facts, said = node.wait(job, 300), log.read_text(encoding="utf-8")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    first, second = re.findall(rf"stopped after step (\d+) of {STEPS}; saved", said)
    assert first == second
    assert f"teacher: going on from step {first}, fingerprint holds" in said
    steps = [record["step"] for record in read_metrics(run_dir / "teacher" / "metrics.jsonl")]
    assert steps == [*range(1, STEPS + 1)]


def test_a_job_near_its_time_limit_saves_and_is_queued_again(node, tmp_path):
    program, log = tmp_path / "python", tmp_path / "job.log"
    program.write_text(STAND_IN, encoding="utf-8")
    program.chmod(0o755)
    limit = ["--time=1", "--signal=TERM@50", f"--output={log}"]
    job = node.submit(*TWO_TASKS, *limit, SCRIPT, "launch.halo", PYTHON=str(program))
    facts, said = node.wait(job, 120), log.read_text(encoding="utf-8")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    for task in (0, 1):
        for line in (f"task {task}, start 0", f"task {task} saved", f"task {task}, start 1"):
            assert said.count(f"{line}\n") == 1, said
