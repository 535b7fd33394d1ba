"""Every shipped config fits where configs/mesh.py says, by the compilers of those devices, which are not there."""

import importlib.util
import os
import re
import resource
import subprocess
import sys

import pytest

from configs.mesh import SERVING, TRAINING, Layout

pytestmark = [pytest.mark.aot, pytest.mark.timeout(1800)]

# Less than a minute each on two cores; the others are slow.
QUICK = (
    *SERVING,
    *(one for one in TRAINING if one.topology.startswith("h") and one.config.endswith("align.py")),
)
TWELVE_LAYERS = """
import dataclasses
from configs.halo_9b.distill import config as make
from hypenet_jax.config import StudentConfig

run = make()
teacher = dataclasses.replace(run.teacher, mixers=run.teacher.mixers[:12])
config = dataclasses.replace(run, teacher=teacher, student=StudentConfig(softmax_layers=(1, 2, 4, 6, 7, 10)))
"""


@pytest.fixture
def launch(request):
    """(exit code, output) of launch.plan on a topology whose compiler is installed here."""

    def run(config: str, topology: str, *words: str) -> tuple[int, str]:
        plugin = "jax_cuda13_plugin" if topology.startswith("h") else "libtpu"
        if importlib.util.find_spec(plugin) is None:
            pytest.skip(f"{plugin} is not installed")
        command = [sys.executable, "-m", "launch.plan", config, "--topology", topology, *words]
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(request.config.rootpath)}
        options = {"cwd": request.config.rootpath, "env": environment}
        done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
        assert done.returncode in (0, 3), done.stderr[-3000:]
        return done.returncode, done.stdout

    return run


def number(output: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.e+-]+)", output)
    assert found, output
    return float(found[1])


def name_of(layout: Layout) -> str:
    return f"{layout.config.removeprefix('configs/')}-{layout.topology}"


def check(launch, layout: Layout) -> None:
    code, output = launch(layout.config, layout.topology, *layout.words)
    assert code == 0, output
    arguments, peak, limit = (number(output, row) for row in ("arguments", "peak", "limit"))
    assert arguments < peak <= limit
    assert number(output, "takes at least") > 0


@pytest.mark.parametrize("layout", QUICK, ids=name_of)
def test_what_compiles_in_a_minute_fits(launch, layout):
    check(launch, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [one for one in TRAINING if one not in QUICK], ids=name_of)
def test_every_stage_fits(launch, layout):
    check(launch, layout)


def test_a_million_tokens_do_not_fit_one_small_chip_and_four_are_found_to_hold_them(launch):
    words = ("--context-length", str(2**20))
    code, output = launch("configs/halo_2b/decode_256k.py", "v5e:1x1", *words)
    assert code == 3
    need, limit = re.search(r"needs ([\d.]+) GiB per device and may take ([\d.]+)", output).groups()
    assert float(need) > 28 > float(limit)
    assert "fits with --topology v5e:2x2 --mesh.tensor 4" in output


@pytest.mark.slow
def test_nine_billion_compile_in_three_minutes_and_eight_gib_and_twelve_layers_in_half(
    launch, tmp_path
):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    shallow = tmp_path / "twelve.py"
    shallow.write_text(TWELVE_LAYERS)
    short = number(launch(str(shallow), "v5p:2x4x4")[1], "compiled in")
    whole = number(launch("configs/halo_9b/distill.py", "v5p:2x4x4")[1], "compiled in")
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert max(before, after) <= 8 * 2**20
    assert whole <= 180
    assert whole <= 2 * short
