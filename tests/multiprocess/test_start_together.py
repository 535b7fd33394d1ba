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


def test_a_process_that_waits_in_vain_said_for_whom_and_ends(start, text, tmp_path):
    words = [*HALO, "--text", str(text), "--run-dir", str(tmp_path / "run")]
    (member,) = start(words, missing=1, join_seconds=3)
    assert member.end() != 0
    assert "waiting up to 3 s for all 2 processes at 127.0.0.1:" in member.said()
