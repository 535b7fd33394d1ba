"""A conversion by two processes with four devices each, stopped twice on the way, is that of one process with eight."""

import pathlib
import re
import signal

import jax
import numpy as np
import pytest
from processes import HALO, starting

from hypenet_jax.evals.report import Report, report_from_json_lines
from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import load_params

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# When a process is told to stop, and what both say then.
STOPS = (
    ("weights of align", r"stopped after layer \d of select; its scores are kept"),
    ("evaluate: needle of teacher", r"stopped before .* of \w+; the same command goes on"),
)
# What a clock or the cut of a device's memory decides, or the last bit of scores that are nearly equal.
OF_THIS_RUN = ("_seconds", "_speedup", "_peak_bytes", "selection_kept")
TRAINED = ("teacher", "align", "distill", "finetune")


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path, list[str]]:
    """(folder of two processes, folder of one, what each of the two said at last)."""
    place = tmp_path_factory.mktemp("chain")
    two, one = ([*HALO, "--text", str(text), "--run-dir", str(place / n)] for n in ("two", "one"))
    with starting(place) as start:
        for process, (going_on, said) in enumerate(STOPS):
            group = start(two, two)
            group[0].wait_for(going_on)
            group[process].popen.send_signal(signal.SIGTERM)
            assert [member.end(800) for member in group] == [42, 42], [m.said() for m in group]
            assert all(re.search(f"Preempted: {said}", member.said()) for member in group)
        group = [*start(two, two), *start(one)]
        assert [member.end(800) for member in group] == [0, 0, 0], [m.said() for m in group]
        return place / "two", place / "one", [member.said() for member in group[:2]]


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_those_of_one_process(runs, name):
    two, one = (read_metrics(run / name / "metrics.jsonl") for run in runs[:2])
    assert [record["step"] for record in two] == [record["step"] for record in one]
    losses = [[record["loss"] for record in records] for records in (two, one)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_final_weights_are_those_of_one_process(runs, name):
    two, one = (load_params(run / name / "final", name)[0] for run in runs[:2])
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(two), jax.tree.leaves(one), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_the_same_layers_are_selected(runs):
    two, one = (read_selection(run / "select" / "selection.json") for run in runs[:2])
    assert two.softmax_layers == one.softmax_layers


def test_the_evaluation_finds_the_same_numbers(runs):
    two, one = (
        [row for row in report_of(run).rows if not row.metric.endswith(OF_THIS_RUN)]
        for run in runs[:2]
    )
    assert [(row.key, row.count) for row in two] == [(row.key, row.count) for row in one]
    np.testing.assert_allclose(*([row.value for row in rows] for rows in (two, one)), rtol=1e-5)


def report_of(run: pathlib.Path) -> Report:
    return report_from_json_lines((run / "report" / "report.jsonl").read_text())


def test_only_process_zero_prints_the_report_and_the_others_only_warn(runs):
    first, second = runs[2]
    assert first.count("heldout_perplexity") == 1
    assert "heldout_perplexity" not in second
    assert " INFO " not in second
