"""Compiling a program for devices that are not there, and what the compiler says of it."""

import dataclasses
import re
import time
from typing import Any

import jax

from hypenet_jax.plan.chips import GIB
from hypenet_jax.plan.hlo import Collective, collectives
from hypenet_jax.plan.programs import Program
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import on_mesh

# "Used 49.09G of 15.75G hbm", and "HLO temporaries (31.64G) exceeds available HBM (15.75G)".
REFUSALS = (
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
    r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as it would run.

    Attributes:
      arguments, outputs: bytes per device; outputs count only what does not take over the place of an argument.
      peak: bytes per device at the worst moment, arguments included.
      collectives: what the devices send each other in one call.
      seconds: that compiling took.
    """

    arguments: int
    outputs: int
    peak: int
    collectives: tuple[Collective, ...]
    seconds: float


class DoesNotFit(RuntimeError):
    """A program needs more memory than a device has.

    Attributes:
      need, limit: bytes per device.
    """

    def __init__(self, need: float, limit: float) -> None:
        super().__init__(
            f"needs {need / GIB:.2f} GiB per device and may take {limit / GIB:.2f} GiB"
        )
        self.need, self.limit = need, limit


def compile_program(program: Program, topology: Topology) -> Compiled:
    """Compiles ahead of time.

    Raises:
      DoesNotFit: the compiler refuses it, or its peak is above the limit of the chip.
    """
    began = time.monotonic()
    with on_mesh(program.mesh):
        lowered = program.function.trace(*program.arguments).lower(
            lowering_platforms=(_platform(topology),)
        )
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise too_big(str(error)) or error from error
    seconds = time.monotonic() - began
    found = _read(compiled, seconds)
    if topology.chip is not None and found.peak > topology.chip.memory:
        raise DoesNotFit(float(found.peak), topology.chip.memory)
    return found


def _platform(topology: Topology) -> str:
    platform = topology.chip.platform if topology.chip else jax.default_backend()
    return "cuda" if platform == "gpu" else platform


def _read(compiled: Any, seconds: float) -> Compiled:
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes
    return Compiled(memory.argument_size_in_bytes, kept, peak, tuple(collectives(text)), seconds)


def too_big(message: str) -> DoesNotFit | None:
    """What the TPU compiler says when memory runs out, in either of its forms: see `REFUSALS`."""
    used = next(filter(None, (re.search(form, message) for form in REFUSALS)), None)
    if used is None:
        return None
    need, limit = (float(used[i]) * 1024 ** (1 + "KMGT".index(used[i + 1])) for i in (1, 3))
    return DoesNotFit(need, limit)
