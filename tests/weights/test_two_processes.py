"""Two processes, half the devices each: each reads its half, one writes the whole model."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import QWEN3

from hypenet_jax.testing import random_params
from hypenet_jax.weights import read_hf, save_hf
from hypenet_jax.weights.names import flatten

pytestmark = pytest.mark.extended

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
ROOT = pathlib.Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.timeout(120)
def test_each_reads_its_part_and_the_export_is_whole(tmp_path):
    # Whole rows of a large embedding: reading around small gaps in the files does not blur the halves.
    every_head = tuple(dataclasses.replace(spec, num_kv_heads=4) for spec in QWEN3.mixers)
    config = dataclasses.replace(QWEN3, vocab_size=4096, mixers=every_head)
    checkpoint = tmp_path / "checkpoint"
    save_hf(checkpoint, config, random_params(config), dtype="float32", max_shard_bytes=200_000)
    target, port = tmp_path / "target", str(free_port())
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, port, str(process), checkpoint, target],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = flatten(read_hf(checkpoint)[1]), flatten(read_hf(target)[1])
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(second[path]))
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    for output, _ in outputs:
        assert int(output.split("bytes")[-1]) < 0.6 * size, outputs
