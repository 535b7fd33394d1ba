import json
import logging
import sys
import time

import jax
import pytest

from hypenet_jax.train.metrics import Metrics, MetricsFile, TensorBoard, read_metrics
from hypenet_jax.train.progress import ProgressDisplay


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def write(path, steps, resume):
    metrics = Metrics(MetricsFile(path))
    metrics.resume(resume)
    for step in steps:
        metrics.write(step, "train", {"loss": step / 2})
    metrics.flush()
    metrics.close()


def test_resuming_leaves_no_step_twice_and_none_out(path):
    write(path, [1, 2, 3, 4, 5], resume=0)
    write(path, [4, 5, 6], resume=3)
    records = read_metrics(path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[2] == {"step": 3, "kind": "train", "loss": 1.5}


def test_a_line_cut_off_by_a_kill_is_dropped(path):
    write(path, [1, 2], resume=0)
    with path.open("a") as file:
        file.write('{"step": 3, "kind": "tr')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    write(path, [3], resume=2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_null_and_the_line_is_json(path):
    metrics = MetricsFile(path)
    metrics.resume(0)
    metrics.write(1, "train", {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1.0})
    metrics.close()
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record == {"step": 1, "kind": "train", "loss": None, "grad_norm": None, "skipped": 1.0}


def test_only_process_zero_writes(path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(path, [1], resume=0)
    assert not path.exists()


def test_tensorboard_writes_event_files(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoard(tmp_path)
    sink.resume(0)
    sink.write(1, "train", {"loss": 1.0})
    sink.flush()
    sink.close()
    assert list(tmp_path.glob("events.*"))


def test_lines_come_now_and_then_for_evaluations_and_at_the_end(caplog):
    sink = ProgressDisplay(steps=5, name="toy", seconds=3600.0)
    values = {"loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 10.0}
    with caplog.at_level(logging.INFO, "hypenet_jax"):
        sink.resume(0)
        for step in range(1, 6):
            time.sleep(0.001)
            sink.write(step, "train", values)
            if step == 3:
                layers = {f"gate/{i}": 0.1 * i for i in range(3)}
                sink.write(step, "evaluation", {"perplexity": 9.0, **layers})
    lines = [record.message for record in caplog.records]
    assert [line.split("  ")[0] for line in lines] == [
        "toy step 1/5",
        "toy step 3/5",
        "toy step 5/5",
    ]
    assert "perplexity 9  gate 0 to 0.2" in lines[1]
    assert "steps/s" in lines[2]
    assert "0:00:00 left" in lines[2]


def test_on_a_terminal_a_bar_shows_the_steps_and_a_line_each_evaluation(
    capsys, caplog, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sink = ProgressDisplay(steps=3, name="toy")
    with caplog.at_level(logging.INFO, "hypenet_jax"):
        sink.resume(1)
        sink.write(2, "train", {"loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0})
        sink.write(2, "evaluation", {"perplexity": 9.0})
        sink.close()
    text = capsys.readouterr().out
    assert "2/3" in text
    assert "loss 2" in text
    assert [record.message.strip() for record in caplog.records] == ["toy step 2/3  perplexity 9"]
