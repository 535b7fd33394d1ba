"""One of two processes killed while both write a checkpoint."""

import pathlib
import random
import time

import numpy as np
import pytest
from processes import SHORT_HEARTBEAT, TOY, Member

from hypenet_jax.train.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, KILLS = 40, 6


def unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """Steps that lie there without their commit marker."""
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    return [path for path in steps if not (path / "commit_success.txt").exists()]


def wait_for_a_save(group: list[Member], folder: pathlib.Path, first: int) -> None:
    """Returns while a step from this one on is being written."""
    end = time.monotonic() + 200
    while not any(int(path.name) >= first for path in unfinished(folder)):
        assert all(member.popen.poll() is None for member in group), [m.said() for m in group]
        assert time.monotonic() < end, [member.said() for member in group]
        time.sleep(0.001)


def test_a_process_killed_in_a_save_ends_the_other_and_the_same_start_loses_no_bit(start, tmp_path):
    rng, whole, cut = random.Random(0), tmp_path / "whole", tmp_path / "cut"

    def begin(folder):
        words = [TOY, str(folder), str(STEPS), "1"]
        return start(words, words, heartbeat=SHORT_HEARTBEAT)

    assert [member.end() for member in begin(whole)] == [0, 0]
    torn = 0
    for number in range(KILLS):
        group = begin(cut)
        wait_for_a_save(group, cut / "checkpoints", (number + 1) * STEPS // (KILLS + 1))
        time.sleep(rng.uniform(0.0, 0.05))
        killed, other = group[:: rng.choice((1, -1))]
        killed.popen.kill()
        began = time.monotonic()
        assert other.end() != 0
        assert time.monotonic() - began < SHORT_HEARTBEAT + 5, other.said()
        torn += bool(unfinished(cut / "checkpoints"))
    assert [member.end() for member in begin(cut)] == [0, 0]
    assert torn, "no kill fell into a save"
    print(f"{torn} of {KILLS} kills left a torn save")
    assert not unfinished(cut / "checkpoints")
    losses, states = zip(
        *(
            (
                [record["loss"] for record in read_metrics(folder / "metrics.jsonl")],
                np.load(folder / f"left-{STEPS}.npz"),
            )
            for folder in (cut, whole)
        ),
        strict=True,
    )
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    found, wanted = states
    assert [found[name].tobytes() for name in found] == [wanted[name].tobytes() for name in wanted]
