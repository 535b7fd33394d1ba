"""Ahead-of-time compilation for devices this machine lacks, and what the compiler reports."""

import dataclasses
import re
import time

import jax

from hypenet_jax.chips import GIB
from hypenet_jax.plan.hlo import Collective, collectives
from hypenet_jax.plan.programs import PlannedProgram
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import on_mesh

# "Used 49.09G of 15.75G hbm", and "HLO temporaries (31.64G) exceeds available HBM (15.75G)".
OUT_OF_MEMORY = (
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
)


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What the compiler reports of a program.

    Attributes:
      arguments, outputs: bytes per device; an output that reuses the buffer of a donated argument counts nothing.
      peak: largest number of bytes per device in use at any time, arguments included.
      collectives: of one call.
      seconds: compile time.
    """

    arguments: int
    outputs: int
    peak: int
    collectives: tuple[Collective, ...]
    seconds: float


class DoesNotFit(RuntimeError):
    """A program needs more memory than a device has.

    Attributes:
      need, limit: bytes per device, as the compiler reports them.
    """

    def __init__(self, need: float, limit: float) -> None:
        needs, may_take = f"{need / GIB:.2f} GiB per device", f"{limit / GIB:.2f} GiB"
        super().__init__(f"needs {needs} and may take {may_take}")
        self.need, self.limit = need, limit


def compile_program(program: PlannedProgram, topology: Topology) -> CompiledProgram:
    """Compiles a program ahead of time.

    Raises:
      DoesNotFit: the compiler runs out of memory, or the program's peak is above the limit of the chip.
    """
    began, chip = time.monotonic(), topology.chip
    platforms = ("cuda" if topology.platform == "gpu" else topology.platform,)
    with on_mesh(program.mesh):
        lowered = program.function.trace(*program.arguments).lower(lowering_platforms=platforms)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise too_big(str(error)) or error from error
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    if chip is not None and chip.memory is not None and memory.peak_memory_in_bytes > chip.memory:
        raise DoesNotFit(float(memory.peak_memory_in_bytes), chip.memory)
    return CompiledProgram(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        collectives=tuple(collectives(compiled.as_text())),
        seconds=seconds,
    )


def too_big(message: str) -> DoesNotFit | None:
    """The error in a compiler message that says that memory ran out (`OUT_OF_MEMORY`), None in any other message."""
    match = next(filter(None, (re.search(form, message) for form in OUT_OF_MEMORY)), None)
    if match is None:
        return None
    need, limit = (float(match[i]) * 1024 ** (1 + "KMGT".index(match[i + 1])) for i in (1, 3))
    return DoesNotFit(need, limit)
