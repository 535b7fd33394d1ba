import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from train_toy import AXES, OPTIMIZER, STAGE, Stream, bits, init, run, trainable

from hypenet_jax.sharding import MeshConfig, make_mesh, shardings_of
from hypenet_jax.train.errors import CheckpointError, NumericsError, Preempted
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.state import create_state

pytestmark = pytest.mark.brief

TIMES = ("seconds", "data_seconds")


def records(folder: pathlib.Path) -> list[dict]:
    """Metrics without the wall clock, which is the only thing two equal runs may differ in."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return bits(run(folder)), records(folder)


class Killed(Exception):
    pass


@dataclasses.dataclass
class Dying(Stream):
    """Raises instead of giving batch number `death`."""

    death: int = 0

    def __next__(self):
        if self.position == self.death:
            raise Killed
        return super().__next__()


@pytest.mark.extended
def test_a_run_killed_anywhere_and_started_again_gives_the_same_bits(tmp_path, uninterrupted):
    for death in (2, 6, 9):
        with pytest.raises(Killed):
            run(tmp_path, batches=Dying(death=death))
    state = run(tmp_path)
    assert bits(state) == uninterrupted[0]
    assert records(tmp_path) == uninterrupted[1]


def test_every_step_and_every_evaluation_is_recorded_once(uninterrupted):
    steps = {
        kind: [r["step"] for r in uninterrupted[1] if r["kind"] == kind]
        for kind in ("train", "evaluation")
    }
    assert steps["train"] == list(range(1, 13))
    assert steps["evaluation"] == [0, 3, 6, 9, 12]


def test_a_run_can_evaluate_before_its_first_step_and_records_it_once(tmp_path):
    for death in (2, 7):
        with pytest.raises(Killed):
            run(tmp_path, batches=Dying(death=death))
    evaluations = [r["step"] for r in records(tmp_path) if r["kind"] == "evaluation"]
    assert evaluations == [0, 3, 6]


def test_a_finished_run_started_again_does_nothing(tmp_path, uninterrupted):
    run(tmp_path)
    state = run(tmp_path, batches=Dying(death=12))
    assert bits(state) == uninterrupted[0]
    assert records(tmp_path) == uninterrupted[1]


def test_a_run_asked_to_stop_saves_that_very_step_and_goes_on_from_it(tmp_path, uninterrupted):
    with pytest.raises(Preempted, match="after step 5 of 12"):
        run(tmp_path, stop=lambda step: step == 5)
    assert (tmp_path / "checkpoints" / "5").exists()
    asked = []
    state = run(tmp_path, stop=lambda step: bool(asked.append(step)))
    assert asked == list(range(6, 13))
    assert bits(state) == uninterrupted[0]
    assert records(tmp_path) == uninterrupted[1]


def test_a_run_asked_to_stop_at_its_last_step_stops_and_has_nothing_left_to_do(
    tmp_path, uninterrupted
):
    with pytest.raises(Preempted, match="after step 12 of 12"):
        run(tmp_path, stop=lambda step: step == 12)
    assert bits(run(tmp_path, batches=Dying(death=12))) == uninterrupted[0]


def test_a_run_rolled_back_goes_on_from_that_step_once(tmp_path, uninterrupted):
    with pytest.raises(Killed):
        run(tmp_path, batches=Dying(death=11))
    with pytest.raises(Killed):
        run(tmp_path, batches=Dying(death=6), roll_back_to=4)
    assert records(tmp_path)[-1]["step"] <= 6
    asked = []
    state = run(tmp_path, roll_back_to=4, stop=lambda step: step != 12 and asked.append(step))
    assert asked[0] == 5
    state = run(tmp_path, roll_back_to=4, batches=Dying(death=12))
    assert bits(state) == uninterrupted[0]
    assert records(tmp_path) == uninterrupted[1]


def test_batches_that_are_not_finite_are_skipped_and_the_run_goes_on(tmp_path):
    state = run(tmp_path, batches=Stream(poisoned=(1, 2, 5)))
    assert state.step == 12
    assert state.opt_state.applied == 9
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    skipped = [r["step"] for r in records(tmp_path) if r.get("skipped")]
    assert skipped == [2, 3, 6]


def test_too_many_skips_in_a_row_end_the_run_naming_steps_and_batches(tmp_path):
    with pytest.raises(NumericsError, match=r"3 updates in a row.*steps 6 \(position 6\), 7 .*, 8"):
        run(tmp_path, batches=Stream(poisoned=tuple(range(5, 12))))
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "train"][-1] == 8


def test_the_checkpoint_of_another_stage_is_refused(tmp_path):
    run(tmp_path, steps=1)
    with pytest.raises(CheckpointError, match="stage 'toy', this is stage 'other'"):
        run(tmp_path, stage=dataclasses.replace(STAGE, name="other"))


def test_the_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path, steps=1)
    with pytest.raises(CheckpointError, match="width: 8 saved, 9 now"):
        run(tmp_path, config={"width": 9})


@pytest.mark.extended
def test_a_run_on_a_mesh_resumes_bit_for_bit_and_agrees_with_one_device(tmp_path, uninterrupted):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])

    def start():
        params = init(jax.random.key(0))
        return create_state(params, trainable, OPTIMIZER, shardings_of(params, AXES, mesh))

    whole = run(tmp_path / "whole", state=start(), mesh=mesh)
    with pytest.raises(Killed):
        run(tmp_path / "cut", state=start(), mesh=mesh, batches=Dying(death=7))
    state = run(tmp_path / "cut", state=start(), mesh=mesh)
    assert bits(state) == bits(whole)
    losses = [r["loss"] for r in records(tmp_path / "cut") if r["kind"] == "train"]
    alone = [r["loss"] for r in uninterrupted[1] if r["kind"] == "train"]
    np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_metrics_of_a_step_are_read_after_the_next_one_is_dispatched(tmp_path, monkeypatch):
    """What is fetched while step n + 1 runs is step n: the order of dispatches and reads
    alternates, one apart.
    """
    events, real = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: events.append("read") or real(tree))

    class Watched(Stream):
        def __next__(self):
            events.append("batch")
            return super().__next__()

    run(tmp_path, steps=4, batches=Watched(), evaluate=None, checkpoint_every=100)
    assert [e for e in events if e in ("batch", "read")][:3] == ["batch", "batch", "read"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"accumulate": 0}, {"checkpoint_every": -1}])
def test_senseless_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        LoopConfig(**{"steps": 5, "accumulate": 1, "checkpoint_every": 2, **wrong})


KILLS, MANY = 20, 200
CHILD = f"""
import pathlib, sys, time
from train_toy import Stream, run
class Slow(Stream):
    def __next__(self):
        time.sleep(0.02)
        return super().__next__()
run(pathlib.Path(sys.argv[1]), steps={MANY}, batches=Slow(), checkpoint_every=1)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_minus_nine_at_twenty_random_moments_loses_nothing(tmp_path):
    """Real processes killed while they start, restore, step and save; then one that may finish."""
    whole = run(tmp_path / "whole", steps=MANY, checkpoint_every=MANY)
    cut, rng, torn = tmp_path / "cut", random.Random(0), 0
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), str(pathlib.Path.cwd())])
    command = [sys.executable, "-c", CHILD, str(cut)]
    # The same bits need the same compiler options: this is a brief test.
    brief = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, **brief, "PYTHONPATH": path}
    for number in range(KILLS):
        child = subprocess.Popen(command, env=environment)
        if number % 4:
            grows(cut / "metrics.jsonl", rng.randrange(1, 5), child)
            time.sleep(rng.uniform(0.0, 0.2))
        else:
            time.sleep(rng.uniform(0.0, 8.0))
        assert child.poll() is None, f"finished before kill {number}"
        child.kill()
        child.wait()
        torn += bool(unfinished(cut / "checkpoints"))
    print(f"{torn} of {KILLS} kills fell into a save")
    assert torn >= 3
    subprocess.run(command, env=environment, check=True)
    assert bits(run(cut, steps=MANY, checkpoint_every=1)) == bits(whole)
    assert records(cut) == records(tmp_path / "whole")
    assert not unfinished(cut / "checkpoints")


def grows(log: pathlib.Path, lines: int, child: subprocess.Popen[bytes]) -> None:
    """Returns once the child has started the file anew and written so many more lines."""
    before = log.stat().st_ino if log.exists() else None
    count = None
    while child.poll() is None:
        if log.exists() and log.stat().st_ino != before:
            found = len(read_metrics(log))
            count = found if count is None else count
            if found >= count + lines:
                return
        time.sleep(0.005)


def unfinished(checkpoints: pathlib.Path) -> list[str]:
    folders = [path for path in checkpoints.glob("*") if path.is_dir()]
    return [path.name for path in folders if not any(path.glob("commit_success*"))]
