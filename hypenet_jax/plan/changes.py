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
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return [word for pair in self.flags.items() for word in pair]


def changes(config: PlannedConfig, topology: Topology) -> Iterator[Change]:
    """Changes in order, each on top of those before it; none alters the numbers of a training step.

    First those that only cost time (remat, then more micro-batches, down to one row per device), then parameters
    sharded over devices that hold copies, then more devices.
    """
    change: Change | None = Change(config, topology)
    most = MAX_GROWTH * topology.count
    while (change := _next(change)) is not None and change.topology.count <= most:
        yield change


def _next(change: Change) -> Change | None:
    config = change.config
    if isinstance(config, ServeConfig):
        larger, times = _grown(change)
        return _changed(larger, "mesh", tensor=times * config.mesh.tensor)
    training = config.training
    assert training is not None
    data, fsdp, _, _ = config.mesh.sizes(change.topology.count)
    accumulate, rows = training.loop.accumulate, config.data.sequences_per_step
    if training.remat == "none":
        return _changed(change, "training", remat="full")
    if rows % (2 * accumulate * data * fsdp) == 0:
        return _changed(change, "training.loop", accumulate=2 * accumulate)
    if data > 1:
        return _changed(change, "mesh", data=1, fsdp=data * fsdp)
    # Every device has one row per micro-batch: twice the devices take half the micro-batches.
    larger, times = _grown(change)
    if accumulate % times:
        return None
    larger = _changed(larger, "mesh", fsdp=times * fsdp)
    return _changed(larger, "training.loop", accumulate=accumulate // times)


def _grown(change: Change) -> tuple[Change, int]:
    """The change on the next larger topology, and the factor on the number of devices."""
    larger = change.topology.larger()
    flags = {**change.flags, "--topology": larger.name}
    grown = dataclasses.replace(change, topology=larger, flags=flags)
    return grown, larger.count // change.topology.count


def _changed(change: Change, section: str, **values: Any) -> Change:
    """The change with other values of a config section, named as on the command line."""
    flags = {f"--{section}.{name}": str(value) for name, value in values.items()}
    config = _replaced(change.config, section.split("."), values)
    return dataclasses.replace(change, config=config, flags={**change.flags, **flags})


def _replaced(config: Any, path: list[str], values: Mapping[str, Any]) -> Any:
    if not path:
        return dataclasses.replace(config, **values)
    inner = _replaced(getattr(config, path[0]), path[1:], values)
    return dataclasses.replace(config, **{path[0]: inner})
