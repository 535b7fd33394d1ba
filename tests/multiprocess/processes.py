"""Real processes on this machine that run launch.halo on the tiny chain together."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TESTS = (ROOT / "tests" / "convert", ROOT / "tests" / "train")
HALO = ["-m", "launch.halo", "tests/multiprocess/tiny_halo.py"]
TOY = str(ROOT / "tests" / "multiprocess" / "toy_run.py")
# Longer than this machine makes a process wait; tests of a lost one take less.
HEARTBEAT, SHORT_HEARTBEAT = 120, 10


@dataclasses.dataclass
class Member:
    """One process of a group."""

    popen: subprocess.Popen[bytes]
    log: pathlib.Path

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, seconds: float = 200.0) -> None:
        """Returns once the process has said this."""
        end = time.monotonic() + seconds
        while text not in self.said():
            assert self.popen.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def end(self, seconds: float = 280.0) -> int:
        """Its exit code."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s:\n{self.said()}")


Start = Callable[..., list[Member]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *TESTS))),
    }


@contextlib.contextmanager
def starting(logs: pathlib.Path) -> Iterator[Start]:
    members: list[Member] = []

    def begin(
        *words: list[str], missing: int = 0, join_seconds: int = 120, heartbeat: int = HEARTBEAT
    ) -> list[Member]:
        count, address = len(words) + missing, f"127.0.0.1:{free_port()}"
        group = []
        for process, own in enumerate(words):
            flags = ["--coordinator", address, "--num-processes", str(count)]
            flags += ["--process-id", str(process), "--join-seconds", str(join_seconds)]
            flags += ["--heartbeat-seconds", str(heartbeat)]
            log = logs / f"{len(members)}.log"
            with log.open("wb") as file:
                command = [sys.executable, *own, *(flags if count > 1 else [])]
                variables = environment(devices=8 // count)
                popen = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file)
            group.append(Member(popen, log))
            members.append(group[-1])
        return group

    try:
        yield begin
    finally:
        for member in members:
            member.popen.kill()
            member.popen.wait()
