"""Compiles every TPU kernel ahead of time, no TPU needed.

The compiler is the real one (libtpu, of the extra `tpu`). The table gives, per program: its Mosaic
kernels, the most VMEM that one of them takes, temporaries in HBM, copies and transposes that change
an array's layout, and the seconds to compile. Ends with 1 if a bar is missed: a program that does
not compile, a relayout copy, or more VMEM or temporaries than the program may take.
"""

import dataclasses
import importlib.util
import logging
import math
import os
import re
import sys
import time
from typing import NoReturn

import jax
import numpy as np
import tyro
from jax.experimental import topologies

from pallas_kernels.bench.report import columns
from pallas_kernels.tpu_programs import PROGRAMS, KernelProgram, programs

logger = logging.getLogger(__name__)

MIB = 2**20
CHIPS = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
# libtpu is told that it runs on no TPU machine, and may be loaded beside another process's.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
SMALLEST_RELAYOUT = MIB  # bytes; smaller arrays hold one number per token, not one per channel
ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "f64": 8, "s64": 8}


@dataclasses.dataclass(frozen=True)
class CompiledRow:
    """What the compiler made of a program for one chip; `missed` is empty where all bars are met."""

    chip: str
    program: KernelProgram
    kernels: int = 0
    vmem: float = math.nan  # MiB, of the kernel that takes the most
    temporaries: float = math.nan  # MiB
    relayouts: int = 0
    seconds: float = math.nan
    missed: str = ""

    def cells(self) -> tuple[str, ...]:
        numbers = f"{self.vmem:.2f}", f"{self.temporaries:.1f}", str(self.relayouts)
        program = self.program.op, self.program.shape, self.program.mode
        seconds = f"{self.seconds:.1f}"
        return (self.chip, *program, str(self.kernels), *numbers, seconds, self.missed or "ok")


HEAD = ("chip", "op", "shape", "mode", "kernels", "VMEM MiB", "temp MiB", "relayouts", "s", "bars")


def main(op: tyro.conf.Positional[str | None] = None, *, chip: str | None = None) -> None:
    """Runs the command.

    Args:
      op: programs of this op alone.
      chip: for this chip alone: v4, v5e, v5p, v6e or tpu7x.
    """
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    for asked, there in ((op, PROGRAMS), (chip, CHIPS)):
        if asked not in (None, *there):
            _refuse(f"there is no {asked!r}; there are {', '.join(there)}")
    if importlib.util.find_spec("libtpu") is None:
        _refuse("the TPU compiler is not installed; pip install 'hypenet-jax[tpu]'")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    todo = [program for name in PROGRAMS if op in (None, name) for program in programs(name)]
    chips = [chip] if chip else CHIPS
    rows = [compile_for(chip, program) for chip in chips for program in todo]
    table = columns([HEAD, *(row.cells() for row in rows)])
    logger.info("JAX %s\n%s", jax.__version__, table)
    sys.exit(any(row.missed for row in rows))


def mesh_of(chip: str) -> jax.sharding.Mesh:
    """One device of that kind, known to the compiler alone."""
    name = f"{chip}:{CHIPS[chip]}"
    device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    return jax.sharding.Mesh(np.asarray([device]), ("device",))


def compile_for(chip: str, program: KernelProgram) -> CompiledRow:
    """Compiles for one chip, on a mesh of one of its devices."""
    start = time.perf_counter()
    try:
        with jax.set_mesh(mesh_of(chip)):
            traced = jax.jit(program.function).trace(*program.arguments)
            compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except Exception as error:
        return CompiledRow(chip, program, missed=f"does not compile: {str(error).splitlines()[0]}")
    seconds = time.perf_counter() - start
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert memory is not None
    sizes = kernel_vmem(text)
    vmem, temporaries = max(sizes, default=0) / MIB, memory.temp_size_in_bytes / MIB
    row = CompiledRow(chip, program, len(sizes), vmem, temporaries, len(relayouts(text)), seconds)
    return dataclasses.replace(row, missed=missed_bars(row))


def missed_bars(row: CompiledRow) -> str:
    """The bars that a compiled program misses, as words; empty for none."""
    vmem, temporaries = row.program.vmem_limit, row.program.temporaries_limit
    bars = {
        "no kernel in the program": row.kernels == 0,
        f"{row.relayouts} relayout copies": row.relayouts > 0,
        f"more than {vmem:g} MiB of VMEM": row.vmem > vmem,
        f"more than {temporaries:g} MiB of temporaries": row.temporaries > temporaries,
    }
    return ", ".join(bar for bar, missed in bars.items() if missed)


def kernel_vmem(hlo: str) -> list[int]:
    """Bytes of VMEM that each Mosaic kernel of an optimized program takes."""
    sizes = []
    for line in hlo.splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            (used,) = re.findall(r'"used_scoped_memory_configs":\[(.*?)\]', line)
            sizes.append(sum(map(int, re.findall(r'"memory_space":"1".*?"size":"(\d+)"', used))))
    return sizes


def relayouts(hlo: str) -> list[str]:
    """Copies and transposes of large arrays in an optimized program, as "type[shape]"."""
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* (?:copy|transpose)\(", hlo)
    return [f"{kind}[{shape}]" for kind, shape in found if _bytes(kind, shape) >= SMALLEST_RELAYOUT]


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def _bytes(kind: str, shape: str) -> int:
    return ITEM_BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m pallas_kernels.compile", description=__doc__)
