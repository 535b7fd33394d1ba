"""plan: what a config needs on a topology; nearest: what to change where it does not fit."""

import dataclasses
import logging
from collections.abc import Sequence

from hypenet_jax.chips import Chip
from hypenet_jax.config import StageConfig
from hypenet_jax.model.cost import Flops
from hypenet_jax.plan.changes import Change, PlannedConfig, changes
from hypenet_jax.plan.compiled import CompiledProgram, DoesNotFit, compile_program
from hypenet_jax.plan.programs import PlannedProgram, serving_program, training_program
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import ShardingError, make_mesh

log = logging.getLogger("hypenet_jax")


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
