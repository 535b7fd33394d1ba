"""A run that goes on with another number of processes."""

import numpy as np
import pytest
from processes import TOY

from hypenet_jax.train.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_from_two_processes_to_one_and_back_the_state_keeps_its_bits_and_losses_agree(
    start, tmp_path
):
    for processes, folder, steps in (
        (2, "moved", 4),
        (1, "moved", 8),
        (2, "moved", 12),
        (1, "whole", 12),
    ):
        group = start(*[[TOY, str(tmp_path / folder), str(steps), "4"]] * processes)
        assert [member.end() for member in group] == [0] * processes, [m.said() for m in group]
    for step in (4, 8):
        left, found = (
            np.load(tmp_path / "moved" / f"{word}-{step}.npz") for word in ("left", "found")
        )
        assert [found[name].tobytes() for name in found] == [left[name].tobytes() for name in left]
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / folder / "metrics.jsonl")]
        for folder in ("moved", "whole")
    ]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(*losses, rtol=1e-6)
