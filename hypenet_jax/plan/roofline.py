"""The least time that a program can take: its FLOPs, its memory or its links, whichever takes longest."""

import dataclasses
from collections.abc import Sequence

from hypenet_jax.plan.chips import Chip
from hypenet_jax.plan.compiled import Compiled
from hypenet_jax.plan.flops import Flops
from hypenet_jax.plan.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one call at the chip's peak rates; a real run takes longer.

    Attributes:
      compute: FLOPs, what is recomputed included.
      memory: every argument read and every output written once; what collectives bring written and read once.
      links: what the devices send each other.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(flops: Flops, compiled: Compiled, chip: Chip, nodes: Sequence[int]) -> Roofline:
    """The roofline of one call.

    Args:
      nodes: the node (or slice) of each device, in the order of the mesh.
    """
    moved = compiled.arguments + compiled.outputs
    links = 0.0
    for one in compiled.collectives:
        sent = one.sent * one.times
        moved += 2 * sent
        links += sent / (chip.links if _within(one, nodes) else chip.network)
    compute = (flops.model + flops.recomputed) / len(nodes) / chip.flops
    return Roofline(compute, moved / chip.bandwidth, links)


def _within(collective: Collective, nodes: Sequence[int]) -> bool:
    """Whether it stays in its nodes."""
    return all(len({nodes[device] for device in group}) == 1 for group in collective.groups)
