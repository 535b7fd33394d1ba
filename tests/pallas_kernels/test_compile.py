"""The ahead-of-time compile command: it reads what the compiler made, and says which bars are
missed."""

import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import pytest

from pallas_kernels import compile as aot

ROOT = pathlib.Path(__file__).parents[2]
HLO = """
ENTRY %main (q: bf16[1,16384,2048]) -> bf16[1,16384,2048] {
  %copy.1 = bf16[1,16384,2048]{1,2,0:T(8,128)(2,1)} copy(%q), metadata={op_name="jit(f)"}
  %transpose.7 = s32[16384]{0:T(1024)} transpose(%gather.4), dimensions={0}
  %copy-start.3 = (f32[16]{0:S(2)}, f32[16]{0}, u32[]{:S(2)}) copy-start(%log_decay)
  %f.1 = (bf16[1,16384,2048]{2,1,0}) custom-call(%copy.1), custom_call_target="tpu_custom_call", \
backend_config={"flag_configs":[],"scoped_memory_configs":[{"memory_space":"1","offset":"0",\
"size":"33554432"}],"used_scoped_memory_configs":[{"memory_space":"1","offset":"0",\
"size":"589824"}],"retry_config":{"retry_count":"0"}}
  %c.1 = s32[16384]{0:T(1024)} custom-call(%p), custom_call_target="AssumeGatherIndicesInBound"
}
"""


def row(**measured):
    program = aot.KernelProgram(
        "op", "B1 T8", "forward", len, (), vmem_limit=4.0, temporaries_limit=1.0
    )
    met = aot.CompiledRow("v5e", program, kernels=1, vmem=3.9, temporaries=0.9)
    return dataclasses.replace(met, **measured)


def test_vmem_is_what_each_kernel_uses_and_not_its_limit():
    assert aot.kernel_vmem(HLO) == [589824]


def test_relayouts_are_copies_and_transposes_of_large_arrays():
    assert aot.relayouts(HLO) == ["bf16[1,16384,2048]"]


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({}, ""),
        ({"vmem": 4.1}, "more than 4 MiB of VMEM"),
        ({"temporaries": 1.1}, "more than 1 MiB of temporaries"),
        ({"relayouts": 2}, "2 relayout copies"),
        ({"kernels": 0}, "no kernel in the program"),
    ],
)
def test_every_bar_that_is_missed_is_named(measured, missed):
    assert aot.missed_bars(row(**measured)) == missed


def test_a_program_that_does_not_compile_is_a_row_that_says_why(monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("no such topology\nand a long trace")

    monkeypatch.setattr(aot.topologies, "get_topology_desc", refuses)
    failed = aot.compile_for("v5e", row().program)
    assert failed.missed == "does not compile: no such topology"
    assert failed.missed in failed.cells()


def test_without_the_compiler_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        aot.main()
    assert "pip install 'hypenet-jax[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "there"),
    [({"op": "conv"}, "decode_attention, lightning_attention"), ({"chip": "v2"}, "v4, v5e, v5p")],
)
def test_an_unknown_op_or_chip_is_refused_with_what_there_is(asked, there, capsys):
    with pytest.raises(SystemExit, match="2"):
        aot.main(**asked)
    assert there in capsys.readouterr().err


@pytest.mark.aot
@pytest.mark.timeout(1800)
def test_every_kernel_compiles_for_every_tpu_within_its_bars():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'hypenet-jax[tpu]'")
    command = [sys.executable, "-m", "pallas_kernels.compile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
