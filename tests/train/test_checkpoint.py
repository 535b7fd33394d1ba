import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from train_toy import AXES, OPTIMIZER, bits, init, make_batch, new_state, trainable
from train_toy import loss as loss_of

from hypenet_jax.sharding import MeshConfig, make_mesh, place_batch, shardings_of
from hypenet_jax.train.checkpoint import Checkpoints, Provenance
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint
from hypenet_jax.train.provenance import other_fields
from hypenet_jax.train.state import create_state

# A read that fails leaves dropped coroutines in the library that reads; they are collected here.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

ORIGIN = Provenance(
    "toy",
    {"width": 8, "data": {"seed": 0, "sizes": (1, 2)}, "run_dir": "/a"},
    resumable=("run_dir",),
)


@pytest.fixture
def opened():
    """Opens folders and closes them at the end."""
    made: list[Checkpoints] = []

    def open_(folder, provenance=ORIGIN):
        made.append(Checkpoints(folder, provenance))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


def state_at(step):
    state = new_state()
    shift = jax.tree.map(lambda x: x + step if x.dtype == jnp.float32 else x, state.params)
    return state.replace(step=state.step + step, params=shift)


def filled(opened, folder, steps=(1, 2)):
    checkpoints = opened(folder)
    for step in steps:
        checkpoints.save(state_at(step), position=10 * step)
    checkpoints.wait()
    return checkpoints


def files_of(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def all_array_data(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    """Which of these files hold what is Orbax's own affair and differs from save to save."""
    return [path for path in files_of(folder, step) if path.parent.name == "d"]


def empty_array_data(folder: pathlib.Path, step: int) -> None:
    for path in all_array_data(folder, step):
        path.write_bytes(b"")


def test_an_empty_folder_has_nothing_to_restore(tmp_path, opened):
    assert opened(tmp_path).restore(new_state()) is None


def test_the_newest_state_comes_back_bit_for_bit_with_its_position(tmp_path, opened):
    filled(opened, tmp_path)
    state, position = opened(tmp_path).restore(new_state())
    assert bits(state) == bits(state_at(2))
    assert position == 20


def test_only_the_last_ones_are_kept(tmp_path, opened):
    checkpoints = filled(opened, tmp_path, steps=range(1, 6))
    assert checkpoints.steps() == [3, 4, 5]


@pytest.mark.extended
@pytest.mark.parametrize("fsdp", [8, 2])
def test_a_checkpoint_moves_to_another_mesh_bit_for_bit(tmp_path, opened, fsdp):
    filled(opened, tmp_path)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp))
    params = init(jax.random.key(3))
    like = create_state(params, trainable, OPTIMIZER, shardings_of(params, AXES, mesh))
    state, _ = opened(tmp_path).restore(like)
    assert bits(state) == bits(state_at(2))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)


@pytest.mark.extended
def test_through_4_8_2_and_1_devices_the_state_keeps_its_bits_and_the_next_loss_agrees(
    tmp_path, opened
):
    filled(opened, tmp_path / "0", steps=(1,))
    losses = []
    for number, devices in enumerate((4, 8, 2, 1)):
        mesh = make_mesh(MeshConfig(data=-1, fsdp=devices // 2 or 1), jax.devices()[:devices])
        params = init(jax.random.key(3))
        like = create_state(params, trainable, OPTIMIZER, shardings_of(params, AXES, mesh))
        state, position = opened(tmp_path / str(number)).restore(like)
        assert bits(state) == bits(state_at(1))
        checkpoints = opened(tmp_path / str(number + 1))
        checkpoints.save(state, position)
        checkpoints.wait()
        loss, _ = jax.jit(loss_of)(state.params, None, place_batch(make_batch(1), mesh))
        losses.append(float(loss.value()))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_in_array_data_is_noticed_and_the_step_before_is_taken(
    tmp_path, opened, caplog, place
):
    filled(opened, tmp_path)
    for path in all_array_data(tmp_path, 2):
        raw = bytearray(path.read_bytes())
        raw[int(place * len(raw))] ^= 0x10
        path.write_bytes(bytes(raw))
    with caplog.at_level(logging.WARNING, "hypenet_jax"):
        state, position = opened(tmp_path).restore(new_state())
    assert bits(state) == bits(state_at(1))
    assert position == 10
    assert "step 2 is corrupt and set aside" in caplog.text


def test_after_a_corrupt_step_its_number_can_be_saved_again(tmp_path, opened):
    filled(opened, tmp_path)
    empty_array_data(tmp_path, 2)
    checkpoints = opened(tmp_path)
    checkpoints.restore(new_state())
    assert checkpoints.steps() == [1]
    checkpoints.save(state_at(2), 20)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert len(list(tmp_path.glob("corrupt-2-*"))) == 1


@pytest.mark.extended
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
def test_harm_to_any_file_is_noticed_or_harmless(tmp_path, opened, harm, subtests):
    """Every file of a checkpoint in turn: the state restored is one that was saved, whole."""
    good = (bits(state_at(1)), bits(state_at(2)))
    filled(opened, tmp_path / "whole")
    for number, path in enumerate(files_of(tmp_path / "whole", 2)):
        inside = path.relative_to(tmp_path / "whole")
        with subtests.test(file=str(inside)):
            copy = tmp_path / f"copy_{number}"
            copy_tree(tmp_path / "whole", copy)
            harm_file(copy / inside, harm)
            state, position = opened(copy).restore(new_state())
            assert bits(state) == good[position // 10 - 1]


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            new = target / path.relative_to(source)
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(path.read_bytes())


def harm_file(path: pathlib.Path, harm: str) -> None:
    raw = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "truncate":
        path.write_bytes(bytes(raw[: len(raw) // 2]))
    elif raw:
        raw[len(raw) // 2] ^= 0x04
        path.write_bytes(bytes(raw))


def test_no_good_step_left_is_an_error_and_stays_one(tmp_path, opened):
    filled(opened, tmp_path, steps=(1,))
    empty_array_data(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint, match="no good checkpoint is left"):
            opened(tmp_path).restore(new_state())


def test_going_back_to_a_step_moves_the_newer_ones_aside_once(tmp_path, opened):
    filled(opened, tmp_path, steps=(1, 2, 3))
    checkpoints = opened(tmp_path)
    checkpoints.roll_back(1)
    assert checkpoints.steps() == [1]
    checkpoints.save(state_at(2), 20)
    checkpoints.wait()
    again = opened(tmp_path)
    again.roll_back(1)
    assert again.steps() == [1, 2]
    assert sorted(path.name for path in (tmp_path / "after-1").iterdir()) == ["2", "3"]


def test_going_back_to_a_step_that_is_not_there_is_refused(tmp_path, opened):
    with pytest.raises(CheckpointError, match=r"cannot go back to step 3; the steps are \[1, 2\]"):
        filled(opened, tmp_path).roll_back(3)
    assert sorted(opened(tmp_path).steps()) == [1, 2]


def test_what_is_not_ours_stays_with_one_warning_and_what_is_unfinished_goes(
    tmp_path, opened, caplog
):
    filled(opened, tmp_path)
    for name in ("7", "junk", "9.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    with caplog.at_level(logging.WARNING, "hypenet_jax"):
        checkpoints = opened(tmp_path)
        _, position = checkpoints.restore(new_state())
    assert position == 20
    said = [r.getMessage().removeprefix(f"{tmp_path}: ") for r in caplog.records]
    assert said == ["removing unfinished 7", "ignoring stray 5, 9.tmp, junk"]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "5", "9.tmp", "junk"}


def test_another_stage_is_refused(tmp_path, opened):
    filled(opened, tmp_path)
    with pytest.raises(CheckpointError, match="written by stage 'toy', this is stage 'distill'"):
        opened(tmp_path, Provenance("distill", ORIGIN.config)).restore(new_state())


def test_other_settings_are_refused_naming_the_keys(tmp_path, opened):
    filled(opened, tmp_path)
    config = {"width": 9, "data": {"seed": 0, "sizes": [1, 2]}, "extra": 1, "run_dir": "/b"}
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, Provenance("toy", config, resumable=("run_dir",))).restore(new_state())
    message = str(error.value)
    assert "extra: nothing saved, 1 now; width: 8 saved, 9 now" in message
    assert "run_dir" not in message
    assert "data" not in message.removeprefix(str(tmp_path))


KIND = {"kind": "Run", "mixers": [{"kind": "Softmax", "heads": 2}], "loss": {"kind": "Plain"}}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, []),
        ({"seed": 1}, ["seed"]),
        ({"mixers": [{"kind": "Softmax", "num_heads": 2}]}, ["mixers.heads", "mixers.num_heads"]),
        ({"mixers": [{"kind": "Lightning", "num_heads": 2}], "loss": None}, []),
        ({"kind": "Stage", "loss": {"kind": "Plain", "scale": 1}}, ["loss.scale"]),
    ],
)
def test_fields_of_another_version_are_told_from_other_settings(changes, fields):
    assert other_fields(KIND, KIND | changes) == fields


def test_another_parent_is_refused(tmp_path, opened):
    filled(opened, tmp_path)
    with pytest.raises(CheckpointError, match="started from weights None, this run from abc"):
        opened(tmp_path, Provenance("toy", ORIGIN.config, "abc", ORIGIN.resumable)).restore(
            new_state()
        )


def test_other_leaves_are_refused_by_path(tmp_path, opened):
    filled(opened, tmp_path)
    params = init(jax.random.key(0))
    params["norm"] = {"scale": jnp.ones((5,))}
    params["more"] = {"kernel": jnp.ones((2, 2))}
    params["held"] = {"kernel": params["held"]["kernel"].astype(jnp.bfloat16)}
    del params["head"]
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path).restore(create_state(params, trainable, OPTIMIZER))
    for line in (
        "params/norm/scale: float32[8] saved, float32[5] now",
        "params/more/kernel: nothing saved, float32[2, 2] now",
        "params/head/kernel: float32[16, 8] saved, nothing now",
        "params/held/kernel: float32[8, 8] saved, bfloat16[8, 8] now",
    ):
        assert line in str(error.value)


def test_a_save_below_a_newer_step_is_an_error_not_silence(tmp_path, opened):
    checkpoints = filled(opened, tmp_path, steps=(5,))
    with pytest.raises(CheckpointError, match=r"step 3 was not saved, because steps \[5\]"):
        checkpoints.save(state_at(3), 30)


def test_a_save_leaves_the_preemption_service_to_the_loop(tmp_path, opened, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    filled(opened, tmp_path)
    assert not asked


def test_what_is_saved_is_the_state_before_later_donated_steps(tmp_path, opened):
    checkpoints, state = opened(tmp_path), state_at(1)
    expected = bits(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints.save(state, 1)
    overwrite(state)
    restored, _ = checkpoints.restore(new_state())
    assert bits(restored) == expected


@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_a_failing_save_is_one_short_error(tmp_path, opened, monkeypatch, method):
    def full(*args, **options):
        raise ValueError("RESOURCE_EXHAUSTED: disk full\n" + "settings " * 1000)

    checkpoints = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, method, full)
        with pytest.raises(CheckpointError, match=r"disk full$"):
            save_and_wait(checkpoints)


def save_and_wait(checkpoints):
    checkpoints.save(state_at(1), 1)
    checkpoints.wait()
