"""A million tokens is a loop: memory grows by the caches and by nothing else."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SPARE = 2**26  # of the allocator, 64 MiB; the activations of 128K tokens at once would be gigabytes


def peak(softmax_layers: int, length: int) -> int:
    command = [sys.executable, ROOT / "tests/generation/long_prefill.py", softmax_layers, length]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), env=environment, check=True, capture_output=True, text=True
    )
    print(softmax_layers, "softmax layers,", length, "tokens:", done.stdout)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("softmax_layers", "short", "long", "cache_bytes"),
    [(0, 2**16, 2**20, 4), (1, 2**14, 2**17, 4 + 2 * 4 * 16 * 4)],
    ids=["recurrent, a million tokens", "hybrid, 128K tokens"],
)
def test_the_peak_of_memory_grows_by_the_caches_alone(softmax_layers, short, long, cache_bytes):
    grown = peak(softmax_layers, long) - peak(softmax_layers, short)
    assert grown < cache_bytes * (long - short) + SPARE
