"""Changes to try when a program does not fit: rematerialization, smaller micro-batches, more shards, more devices."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hypenet_jax.config import StageConfig
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.topology import Topology

PlannedConfig = StageConfig | ServeConfig
MAX_GROWTH = 4  # largest factor on the number of devices of the given topology


@dataclasses.dataclass(frozen=True)
class Change:
    """A changed config and topology.

    Attributes:
      flags: command-line flags that make all the changes.
    """

    config: PlannedConfig
    topology: Topology
    flags: Mapping[str, str]

    @property
    def words(self) -> list[str]:
        return [word for pair in self.flags.items() for word in pair]


def changes(config: PlannedConfig, topology: Topology) -> Iterator[Change]:
    """Changes in order, each on top of those before it; none alters the numbers of a training step.

    First those that only cost time (remat, then more micro-batches, down to one row per device), then parameters
    sharded over devices that hold copies, then more devices.
    """
    flags, most = {}, MAX_GROWTH * topology.count
    while (step := _next(config, topology)) is not None:
        larger, values = step
        if larger.count > most:
            return
        if larger != topology:
            flags, topology = {**flags, "--topology": larger.name}, larger
        for name, value in values.items():
            config = _replaced(config, name.split("."), value)
        flags = {**flags, **{f"--{name}": str(value) for name, value in values.items()}}
        yield Change(config, topology, flags)


def _next(config: PlannedConfig, topology: Topology) -> tuple[Topology, dict[str, Any]] | None:
    """The topology and the fields of the next change."""
    larger = topology.larger()
    times = larger.count // topology.count
    if isinstance(config, ServeConfig):
        return larger, {"mesh.tensor": times * config.mesh.tensor}
    training = config.training
    assert training is not None
    data, fsdp, _, _ = config.mesh.sizes(topology.count)
    accumulate, rows = training.loop.accumulate, config.data.sequences_per_step
    if training.remat == "none":
        return topology, {"training.remat": "full"}
    if rows % (2 * accumulate * data * fsdp) == 0:
        return topology, {"training.loop.accumulate": 2 * accumulate}
    if data > 1:
        return topology, {"mesh.data": 1, "mesh.fsdp": data * fsdp}
    # Every device has one row per micro-batch: twice the devices take half the micro-batches.
    if accumulate % times:
        return None
    return larger, {"mesh.fsdp": times * fsdp, "training.loop.accumulate": accumulate // times}


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    inner = _replaced(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: inner})
