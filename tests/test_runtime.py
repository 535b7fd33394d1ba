import logging
import os
import signal

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


def test_a_main_that_ends_well_passes_through():
    with runtime.main_guard({}):
        pass


def test_named_keys_differ_by_name_and_seed_and_repeat():
    data = lambda seed, name: jax.random.key_data(runtime.keys(seed)(name)).tolist()  # noqa: E731
    assert data(0, "init") == data(0, "init")
    assert len({str(data(seed, name)) for seed in (0, 1) for name in ("init", "dropout")}) == 4


def test_key_of_a_name_is_the_same_on_every_machine():
    want = jax.random.fold_in(jax.random.key(0), 3329549428)
    assert np.array_equal(jax.random.key_data(runtime.keys(0)("init")), jax.random.key_data(want))


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


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("joined"))
    for name in ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    runtime.join_processes(runtime.Cluster())


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        (("host:1", 2, 1), {}),
        ((), {"SLURM_STEP_NODELIST": "n[1-2]"}),
        ((), {"TPU_WORKER_HOSTNAMES": "a,b"}),
    ],
)
def test_given_or_detected_processes_are_joined(monkeypatch, given, environment):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.join_processes(runtime.Cluster(*given))
    assert calls == [given]


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
