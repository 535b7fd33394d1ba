"""A whole conversion killed in every stage and in its evaluation ends with the bits of one that was not."""

import random
import re
import time

import pytest
from processes import HALO

from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import read_stage_output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TRAINED = ("teacher", "align", "distill", "finetune")
# Said shortly before something is written: a checkpoint, final weights, an export, scores, the report.
MOMENTS = (
    *(f"{name} step 1/" for name in TRAINED[:2]),
    "select: layer 0",
    *(f"{name} step 1/" for name in TRAINED[2:]),
    "evaluate: needle of student",
)


def test_kill_minus_nine_in_every_stage_changes_no_bit(start, text, tmp_path):
    rng, whole, cut = random.Random(1), tmp_path / "whole", tmp_path / "cut"

    def begin(folder):
        (member,) = start([*HALO, "--text", str(text), "--run-dir", str(folder)])
        return member

    assert begin(whole).end(600) == 0
    for moment in MOMENTS:
        member = begin(cut)
        member.wait_for(moment)
        time.sleep(rng.uniform(0.0, 0.8))
        assert member.popen.poll() is None, member.said()
        member.popen.kill()
        member.popen.wait()
    last = begin(cut)
    assert last.end(600) == 0
    done = re.findall(r"(\w+): done before", last.said())
    assert done == ["teacher", "align", "select", "distill", "finetune"]
    for name in TRAINED:
        losses = [
            [r["loss"] for r in read_metrics(run / name / "metrics.jsonl")] for run in (cut, whole)
        ]
        assert losses[0] == losses[1]
        prints = [
            read_stage_output(run / name / "final", name)["fingerprint"] for run in (cut, whole)
        ]
        assert prints[0] == prints[1]
    selections = [read_selection(run / "select" / "selection.json") for run in (cut, whole)]
    assert selections[0] == selections[1]
