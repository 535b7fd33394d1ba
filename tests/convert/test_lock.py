"""One run at a time in a run directory."""

import errno
import logging
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from hypenet_jax.convert import lock
from hypenet_jax.convert.lock import InUse, sole_use

HOLDER = """
import sys, time
from hypenet_jax.convert.lock import sole_use
with sole_use(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_naming_the_first_until_that_one_is_killed(tmp_path, holder):
    named = rf"run is in use by process {holder.pid} on {socket.gethostname()} since 20.*end it"
    with pytest.raises(InUse, match=named), sole_use(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    for _ in range(2):  # once more: the lock ends with its block
        with sole_use(tmp_path / "run"):
            assert f'"pid": {os.getpid()}' in (tmp_path / "run" / "lock").read_text()


def test_a_holder_on_another_host_is_waited_for(tmp_path, holder, monkeypatch, caplog):
    """Its host may be gone, and the file server only does not know it yet."""
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "hypenet_jax"):
        patch.setattr(lock, "SECONDS_FOR_ANOTHER_HOST", 0)
        with pytest.raises(InUse, match=f"process {holder.pid}"), sole_use(tmp_path / "run"):
            pass
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (holder.kill(), holder.wait()))
    with sole_use(tmp_path / "run"):
        pass
    assert caplog.text.count("waiting up to") == 1


def test_without_locks_on_the_file_system_the_run_goes_on_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    with caplog.at_level(logging.WARNING, "hypenet_jax"), sole_use(tmp_path / "run"):
        pass
    assert "no locks on this file system" in caplog.text
