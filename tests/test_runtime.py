import logging
import os
import pathlib
import shutil
import signal
import socket

import jax
import numpy as np
import pytest

from hypenet_jax import runtime


class BadSettings(ValueError):
    pass


def exit_code(error, capsys):
    codes = {BadSettings: runtime.BAD_CONFIG, TimeoutError: runtime.PREEMPTED}
    with pytest.raises(SystemExit) as end, runtime.main_guard(codes):
        raise error
    return end.value.code, capsys.readouterr().err


def test_known_errors_end_with_their_code_and_no_traceback(capsys):
    assert exit_code(BadSettings("use 3"), capsys) == (2, "BadSettings: use 3\n")
    assert exit_code(TimeoutError("saved"), capsys)[0] == 42


def test_other_errors_are_bugs_and_keep_their_traceback(capsys):
    code, text = exit_code(ValueError("odd"), capsys)
    assert code == 1
    assert "Traceback" in text


def test_a_device_that_is_too_small_has_its_code(capsys):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    code, text = exit_code(error, capsys)
    assert code == runtime.DOES_NOT_FIT
    assert text == f"JaxRuntimeError: {error}\n"


def test_a_main_that_ends_well_passes_through():
    with runtime.main_guard({}):
        pass


def test_named_keys_differ_by_name_and_seed_and_repeat():
    data = lambda seed, name: jax.random.key_data(runtime.keys(seed)(name)).tolist()  # noqa: E731
    assert data(0, "init") == data(0, "init")
    assert len({str(data(seed, name)) for seed in (0, 1) for name in ("init", "dropout")}) == 4


def test_key_of_a_name_is_the_same_on_every_machine():
    expected = jax.random.fold_in(jax.random.key(0), 3329549428)
    assert np.array_equal(
        jax.random.key_data(runtime.keys(0)("init")), jax.random.key_data(expected)
    )


def test_sigterm_raises_a_flag_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with runtime.stop_on_sigterm() as stop:
        assert not stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_part_of_a_cluster_address_is_refused():
    with pytest.raises(ValueError, match="given together"):
        runtime.Cluster(coordinator="localhost:1234")


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_"))]:
        monkeypatch.delenv(name)
    return calls


def test_one_process_joins_nobody(joined):
    runtime.join_processes(runtime.Cluster())
    assert not joined


def test_given_processes_are_joined_with_their_times(joined, capsys):
    runtime.join_processes(
        runtime.Cluster(
            coordinator="host:1", num_processes=2, process_id=1, join_seconds=7, heartbeat_seconds=8
        )
    )
    ((where, options),) = joined
    assert where == ("host:1", 2, 1)
    assert options["initialization_timeout"] == 7
    assert options["heartbeat_timeout_seconds"] == 8
    assert options["cluster_detection_method"] == "deactivate"
    said = capsys.readouterr().err
    assert said == "process 1 of 2: waiting up to 7 s for all 2 processes at host:1\n"


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "n[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1,10.0.0.2:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
    ("environment", "address"), [(SLURM, "n07:61441"), (OPEN_MPI, "10.0.0.1:61441")]
)
def test_detected_processes_are_joined_and_each_takes_one_device(
    joined, monkeypatch, environment, address
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.join_processes(runtime.Cluster())
    ((where, options),) = joined
    assert where == (address, 4, 3)
    assert options["local_device_ids"] == [1]


def test_hosts_of_a_tpu_slice_are_joined_and_see_all_their_devices(joined, monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,elsewhere")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    runtime.join_processes(runtime.Cluster())
    ((where, options),) = joined
    assert where == ("localhost:8482", 4, 3)
    assert options["local_device_ids"] is None


def test_a_single_task_of_slurm_stays_alone_and_keeps_all_devices(joined, monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    runtime.join_processes(runtime.Cluster())
    assert not joined


def test_a_single_process_agrees_with_itself():
    runtime.check_agreement(config={"a": 1})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"config": {"lr": 2}}, "another config than"),
        ({"data": ["x"]}, "another data than"),
        ({"code": {"jax": "1"}, "data": None}, "another code and data than"),
    ],
)
def test_processes_that_differ_are_named_with_their_host_and_what_differs(monkeypatch, other, said):
    facts = {"config": {"lr": 1}, "code": {"jax": "0"}, "data": ["y"]}
    rows = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        runtime.multihost_utils, "process_allgather", lambda row: rows.append(row) or row[None]
    )
    runtime.check_agreement(**facts)
    runtime.check_agreement(**(facts | other))
    monkeypatch.setattr(
        runtime.multihost_utils, "process_allgather", lambda row: np.stack([*rows[:1] * 2, rows[1]])
    )
    with pytest.raises(runtime.ProcessesDiffer) as caught:
        runtime.check_agreement(**facts)
    assert f"process 2 on {socket.gethostname()[:64]} has {said} process 0" in str(caught.value)
    assert "process 1" not in str(caught.value)


def test_another_byte_of_the_sources_is_another_version(monkeypatch, tmp_path):
    root = pathlib.Path(runtime.__file__).parents[1]
    for package in ("hypenet_jax", "pallas_kernels"):
        shutil.copytree(root / package, tmp_path / package)
    here = runtime.code_version()
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "hypenet_jax" / "runtime.py"))
    assert runtime.code_version() == here
    with (tmp_path / "pallas_kernels" / "__init__.py").open("a") as file:
        file.write("#")
    assert runtime.code_version()["sources"] != here["sources"]


def test_a_signal_late_in_one_stage_stops_the_next_whose_steps_begin_anew(monkeypatch):
    from jax.experimental import multihost_utils

    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or n == 4
    )
    with runtime.stop_on_sigterm() as stop:
        assert [stop(step) for step in (1, 2, 3, 1)] == [False, False, False, True]
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize(("process", "level"), [(0, logging.INFO), (1, logging.WARNING)])
def test_process_zero_logs_and_the_others_only_warn(monkeypatch, capsys, process, level):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    kept = (runtime.log.handlers[:], runtime.log.level, runtime.log.propagate)
    try:
        runtime.set_up_logging()
        assert runtime.log.level == level
        runtime.log.info("one")
        runtime.log.warning("two")
        text = capsys.readouterr().err
        assert ("one" in text) == (process == 0)
        assert "two" in text
    finally:
        runtime.log.handlers[:], runtime.log.level, runtime.log.propagate = kept
