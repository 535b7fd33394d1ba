"""Two processes that are stopped, killed, or of which one fails."""

import re
import signal
import time

import pytest
from processes import HALO, ROOT, SHORT_HEARTBEAT

from hypenet_jax.runtime import SECONDS_TO_LEAVE
from hypenet_jax.train.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = 2000


@pytest.fixture
def words(text, tmp_path):
    return [*HALO, "--text", str(text), "--run-dir", str(tmp_path / "run"), "--only", "teacher"]


@pytest.fixture
def training(start, words):
    """training(...): two processes in the middle of it."""

    def begin(**options):
        long = [*words, "--teacher-steps", str(LONG)]
        members = start(long, long, **options)
        members[0].wait_for("teacher step 1/")
        return members

    return begin


# What resumes: two processes, or one with all the devices.
@pytest.mark.parametrize(("process", "resuming"), [(0, 1), (1, 2)])
def test_sigterm_on_either_process_saves_the_same_step_on_both_and_the_run_goes_on(
    training, start, words, tmp_path, process, resuming
):
    group = training()
    began = time.monotonic()
    group[process].popen.send_signal(signal.SIGTERM)
    assert [member.end() for member in group] == [42, 42], [member.said() for member in group]
    print(f"stopped within {time.monotonic() - began:.1f} s")
    found = [
        re.findall(r"Preempted: stopped after step (\d+) of", member.said()) for member in group
    ]
    assert found[0] == found[1]
    (step,) = map(int, found[0])
    folder = tmp_path / "run" / "teacher"
    assert (folder / "checkpoints" / str(step) / "commit_success.txt").exists()
    assert len(read_metrics(folder / "metrics.jsonl")) == step
    more = [*words, "--teacher-steps", str(step + 2)]
    again = start(*[more] * resuming)
    assert [member.end() for member in again] == [0] * resuming, [m.said() for m in again]
    assert f"teacher: going on from step {step}, fingerprint holds" in again[0].said()
    steps = [record["step"] for record in read_metrics(folder / "metrics.jsonl")]
    assert steps == [*range(1, step + 3)]


@pytest.mark.parametrize("process", [0, 1])
def test_a_killed_process_ends_the_other_within_the_heartbeat(training, process):
    group = training(heartbeat=SHORT_HEARTBEAT)
    began = time.monotonic()
    group[process].popen.kill()
    other = group[1 - process]
    assert other.end() != 0
    assert time.monotonic() - began < SHORT_HEARTBEAT + 5, other.said()


def test_a_process_that_fails_alone_keeps_its_exit_code_and_takes_the_other_along(start):
    alone = [str(ROOT / "tests" / "multiprocess" / "fails_alone.py")]
    waiting, failing = start(alone, alone, heartbeat=SHORT_HEARTBEAT)
    failing.wait_for("OSError: one disk")
    failed = time.monotonic()
    assert failing.end() == 5, failing.said()
    assert time.monotonic() - failed < SECONDS_TO_LEAVE + 5
    assert waiting.end() != 0
    assert time.monotonic() - failed < SECONDS_TO_LEAVE + SHORT_HEARTBEAT + 5, waiting.said()
