"""plan: what a config needs on a topology; nearest: what to change where it does not fit."""

import dataclasses
import logging

from hypenet_jax.config import StageConfig
from hypenet_jax.plan.changes import Change, PlannedConfig, changes
from hypenet_jax.plan.compiled import CompiledProgram, DoesNotFit, compile_program
from hypenet_jax.plan.programs import PlannedProgram, training_program
from hypenet_jax.plan.roofline import Roofline, roofline
from hypenet_jax.plan.serving import serving_program
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import ShardingError, make_mesh

log = logging.getLogger("hypenet_jax")


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
