"""python -m launch.plan: its exit codes, and what it prints on a machine without accelerators."""

import pathlib
import subprocess
import sys

import pytest

from hypenet_jax.plan import DoesNotFit
from hypenet_jax.plan.changes import Change
from hypenet_jax.plan.topology import parse
from launch import plan

ROOT = pathlib.Path(__file__).parents[2]
ALIGN = "configs/halo_2b/align.py"
TINY = """
import dataclasses
from configs.halo_2b.align import config as make
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers import SoftmaxSpec

teacher = ModelConfig(
    vocab_size=256,
    d_model=32,
    d_mlp=64,
    mixers=(SoftmaxSpec(num_heads=2, num_kv_heads=2, head_dim=16, rope_theta=1e4),) * 2,
    tie_embeddings=True,
)
config = dataclasses.replace(make(), teacher=teacher)
"""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)


def code(*words):
    try:
        return plan.main(list(words))
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("words", "expected"), [(["--help"], 0), ([], 2)])
def test_help_prints_the_usage_and_so_does_nothing_at_all(capsys, words, expected):
    assert code(*words) == expected
    assert "python -m launch.plan CONFIG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ALIGN, "--topology", "v9:2x2"], "v5p:2x4x4"),
        (["configs/halo_2b/halo.py", "--topology", "v5e:4x4"], "HaloConfig"),
        ([ALIGN, "--topology", "v5e:4x4", "--mesh.tensor", "0"], "must be positive"),
    ],
)
def test_a_bad_topology_or_config_is_code_two_and_what_would_work(capsys, words, said):
    assert code(*words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_is_code_three_with_need_limit_and_the_nearest_change(
    capsys, monkeypatch, fits
):
    def refuse(config, topology):
        raise DoesNotFit(49.09 * 2**30, 15.75 * 2**30)

    def change(config, topology):
        return Change(config, parse("v5e:4x8"), {"--topology": "v5e:4x8"}) if fits else None

    monkeypatch.setattr(plan, "plan", refuse)
    monkeypatch.setattr(plan, "nearest", change)
    assert code(ALIGN, "--topology", "v5e:4x4") == 3
    printed = capsys.readouterr().out
    assert "needs 49.09 GiB per device and may take 15.75 GiB" in printed
    assert ("fits with --topology v5e:4x8" if fits else "nothing tried") in printed


def test_virtual_devices_need_nothing_but_a_cpu(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    command = [sys.executable, "-m", "launch.plan", str(path), "--devices", "4"]
    brief = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **brief}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "align on cpu:4: 4 devices, data 1, fsdp 4, sequence 1, tensor 1" in done.stdout
    for line in ("arguments", "peak", "all-gather", "FLOPs of a call"):
        assert line in done.stdout
