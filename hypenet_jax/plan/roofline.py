"""Roofline of a program: the longest of its compute, memory and communication times at peak rates."""

import dataclasses
from collections.abc import Sequence

from hypenet_jax.chips import Chip
from hypenet_jax.model.cost import Flops
from hypenet_jax.plan.compiled import CompiledProgram
from hypenet_jax.plan.hlo import Collective


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
        links += sent / (chip.links if _within_node(collective, nodes) else chip.network)
    compute = (flops.model + flops.recomputed) / len(nodes) / chip.flops
    return Roofline(compute, moved / chip.bandwidth, links)


def _within_node(collective: Collective, nodes: Sequence[int]) -> bool:
    """Whether every group of a collective lies in one node."""
    return all(len({nodes[device] for device in group}) == 1 for group in collective.groups)
