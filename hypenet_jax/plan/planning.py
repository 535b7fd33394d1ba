"""plan: what a config needs on a topology, by compiling it there; nearest: what to change where it does not fit."""

import dataclasses
import logging
import re
import time
from collections.abc import Sequence

import jax

from hypenet_jax.chips import GIB, Chip
from hypenet_jax.config import StageConfig
from hypenet_jax.model.cost import Flops
from hypenet_jax.plan.changes import Change, PlannedConfig, changes
from hypenet_jax.plan.hlo import Collective, collectives
from hypenet_jax.plan.programs import PlannedProgram, serving_program, training_program
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import ShardingError, make_mesh, on_mesh

log = logging.getLogger("hypenet_jax")

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


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one call at the chip's peak rates; a real run takes longer.

    Attributes:
      compute: FLOPs, recomputation included.
      memory: every argument read and every output written once; received data written and read once.
      links: data sent by collectives.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """The name of the longest of the three."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class DevicePlan:
    """What a config needs on a topology.

    Attributes:
      roofline: None on devices of this machine, whose peak rates are not known.
    """

    config: PlannedConfig
    topology: Topology
    program: PlannedProgram
    compiled: CompiledProgram
    roofline: Roofline | None


def plan(config: PlannedConfig, topology: Topology) -> DevicePlan:
    """Compiles the config's program for the devices of the topology.

    Raises:
      DoesNotFit: the program needs more memory than a device has.
      TopologyError: there is no such topology, or no compiler for it.
    """
    mesh = make_mesh(config.mesh, topology.devices())
    trains = isinstance(config, StageConfig)
    program = training_program(config, mesh) if trains else serving_program(config, mesh)
    compiled = compile_program(program, topology)
    nodes = [topology.node(device) for device in mesh.devices.flat]
    chip = topology.chip
    bound = None if chip is None else roofline(program.flops, compiled, chip, nodes)
    return DevicePlan(config, topology, program, compiled, bound)


def nearest(config: PlannedConfig, topology: Topology) -> Change | None:
    """The first of `changes` with which the config fits, found by compiling each; None if none fits."""
    for change in changes(config, topology):
        try:
            plan(change.config, change.topology)
        except (DoesNotFit, ShardingError) as error:
            log.info("with %s: %s", " ".join(change.words), error)
        else:
            return change
    return None


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


def roofline(flops: Flops, compiled: CompiledProgram, chip: Chip, nodes: Sequence[int]) -> Roofline:
    """The roofline of one call.

    Args:
      nodes: the node (or slice) of each device, in the order of the mesh.
    """
    moved = compiled.arguments + compiled.outputs
    links = 0.0
    for collective in compiled.collectives:
        sent = collective.sent * collective.times
        moved += 2 * sent
        within = all(len({nodes[device] for device in group}) == 1 for group in collective.groups)
        links += sent / (chip.links if within else chip.network)
    compute = (flops.model + flops.recomputed) / len(nodes) / chip.flops
    return Roofline(compute, moved / chip.bandwidth, links)
