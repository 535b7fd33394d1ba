"""plan: a config and a topology to what it would need there; nearest: what to change where it does not fit."""

import dataclasses
import logging

from hypenet_jax.config import StageConfig
from hypenet_jax.plan.changes import Change, Planned, changes
from hypenet_jax.plan.compiled import Compiled, DoesNotFit, compile_program
from hypenet_jax.plan.programs import Program, training_program
from hypenet_jax.plan.roofline import Roofline, roofline
from hypenet_jax.plan.serving import serving_program
from hypenet_jax.plan.topology import Topology
from hypenet_jax.sharding import ShardingError, make_mesh

log = logging.getLogger("hypenet_jax")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config needs on a topology.

    Attributes:
      roofline: None where the rates of the devices are not known.
    """

    config: Planned
    topology: Topology
    program: Program
    compiled: Compiled
    roofline: Roofline | None


def plan(config: Planned, topology: Topology) -> Plan:
    """Compiles what the config runs for the devices of the topology.

    Raises:
      DoesNotFit: it needs more memory than they have.
      TopologyError: there is no such topology, or no compiler for it.
    """
    mesh = make_mesh(config.mesh, topology.devices())
    trains = isinstance(config, StageConfig)
    program = training_program(config, mesh) if trains else serving_program(config, mesh)
    compiled = compile_program(program, topology)
    nodes = [topology.node(device) for device in mesh.devices.flat]
    chip = topology.chip
    bound = None if chip is None else roofline(program.flops, compiled, chip, nodes)
    return Plan(config, topology, program, compiled, bound)


def nearest(config: Planned, topology: Topology) -> Change | None:
    """The smallest of `changes` with which it fits, each of them compiled; None where none does."""
    for change in changes(config, topology):
        try:
            plan(change.config, change.topology)
        except (DoesNotFit, ShardingError) as error:
            log.info("with %s: %s", " ".join(change.words), error)
        else:
            return change
    return None
