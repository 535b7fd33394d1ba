"""How processes of one run find each other, and that they refuse to start on different configs."""

import pytest
from processes import HALO

pytestmark = pytest.mark.timeout(300)


def test_processes_with_different_configs_refuse_to_start_and_say_which_differs(
    start, text, tmp_path
):
    words = [*HALO, "--text", str(text), "--run-dir", str(tmp_path / "run")]
    group = start(words, [*words, "--teacher-steps", "4"])
    assert [member.end() for member in group] == [2, 2], [member.said() for member in group]
    for process, member in enumerate(group):
        said = member.said()
        assert f"process {process} of 2: waiting up to 120 s for all 2 processes at 127." in said
        assert "ProcessesDiffer: process 1 on " in said
        assert "has another config than process 0" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_start_in_a_run_dir_in_use_ends_all_its_processes_with_one_error(
    start, text, tmp_path
):
    words = [*HALO, "--text", str(text), "--run-dir", str(tmp_path / "run"), "--only", "teacher"]
    first = start(words, words)
    first[0].wait_for("waiting up to")
    while not (tmp_path / "run" / "lock").exists():
        assert first[0].popen.poll() is None, first[0].said()
    second = start(words, words)
    assert [member.end() for member in second] == [2, 2], [member.said() for member in second]
    holder = f"is in use by process {first[0].popen.pid} on "
    assert all(holder in member.said() for member in second)
    assert "Traceback" not in second[0].said() + second[1].said()
    assert [member.end() for member in first] == [0, 0], [member.said() for member in first]


def test_a_process_that_waits_in_vain_said_for_whom_and_ends(start, text, tmp_path):
    words = [*HALO, "--text", str(text), "--run-dir", str(tmp_path / "run")]
    (member,) = start(words, missing=1, join_seconds=3)
    assert member.end() != 0
    assert "waiting up to 3 s for all 2 processes at 127.0.0.1:" in member.said()
