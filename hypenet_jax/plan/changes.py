"""The nearest change of what does not fit: recomputing, smaller micro-batches, more shards, more devices."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hypenet_jax.config import StageConfig
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.topology import Topology

Planned = StageConfig | ServeConfig
MOST_DEVICES = 4  # times as many as were asked for


@dataclasses.dataclass(frozen=True)
class Change:
    """A config and its topology after some changes.

    Attributes:
      flags: what to type for all of them.
    """

    config: Planned
    topology: Topology
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return [word for pair in self.flags.items() for word in pair]


def changes(config: Planned, topology: Topology) -> Iterator[Change]:
    """Ever larger changes, each on top of those before it, that leave the update of a step as it is.

    First what costs time alone (remat, then more micro-batches, down to one row per device), then parameters cut
    over the devices that hold copies, then more devices.
    """
    now: Change | None = Change(config, topology)
    while (now := _next(now)) is not None and now.topology.count <= MOST_DEVICES * topology.count:
        yield now


def _next(now: Change) -> Change | None:
    config = now.config
    if isinstance(config, ServeConfig):
        more, times = _grown(now)
        return _changed(more, "mesh", tensor=times * config.mesh.tensor)
    training = config.training
    assert training is not None
    data, fsdp, _, _ = config.mesh.sizes(now.topology.count)
    accumulate, rows = training.loop.accumulate, config.data.sequences_per_step
    rows_fit = rows % (2 * accumulate * data * fsdp) == 0
    if training.remat == "none":
        return _changed(now, "training", remat="full")
    if rows_fit:
        return _changed(now, "training.loop", accumulate=2 * accumulate)
    if data > 1:
        return _changed(now, "mesh", data=1, fsdp=data * fsdp)
    # One row per device already: twice the devices take half the micro-batches.
    more, times = _grown(now)
    if accumulate % times:
        return None
    more = _changed(more, "mesh", fsdp=times * fsdp)
    return _changed(more, "training.loop", accumulate=accumulate // times)


def _grown(now: Change) -> tuple[Change, int]:
    """On the next larger topology, and how many times as many devices it has."""
    larger = now.topology.larger()
    flags = {**now.flags, "--topology": larger.name}
    grown = dataclasses.replace(now, topology=larger, flags=flags)
    return grown, larger.count // now.topology.count


def _changed(now: Change, section: str, **values: Any) -> Change:
    """With other values of a section, which is named as on the command line."""
    flags = {f"--{section}.{name}": str(value) for name, value in values.items()}
    config = _replaced(now.config, section.split("."), values)
    return dataclasses.replace(now, config=config, flags={**now.flags, **flags})


def _replaced(config: Any, path: list[str], values: Mapping[str, Any]) -> Any:
    if not path:
        return dataclasses.replace(config, **values)
    inner = _replaced(getattr(config, path[0]), path[1:], values)
    return dataclasses.replace(config, **{path[0]: inner})
