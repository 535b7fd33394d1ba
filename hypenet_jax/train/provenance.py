"""Whose checkpoint it is: a sealed description beside the arrays, held against the run that reads it."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from hypenet_jax.fingerprint import digest
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Whose checkpoint it is. A checkpoint of another provenance is refused.

    Attributes:
      stage: name of the stage.
      config: resolved settings of the run, as JSON can hold them.
      parent: fingerprint of the weights the stage started from; None without a parent.
      free: dotted keys of `config` (or prefixes of them) that may differ when a run goes on.
    """

    stage: str
    config: Mapping[str, Any]
    parent: str | None = None
    free: tuple[str, ...] = ()

    def description(self, **facts: Any) -> dict[str, Any]:
        """Provenance, library versions and `facts` as JSON can hold them, with a checksum over all of them."""
        about = {
            "stage": self.stage,
            "config": dict(self.config),
            "parent": self.parent,
            "versions": versions(),
            **facts,
        }
        return {**about, "seal": digest(about)}


def unsealed(found: Any, where: str) -> dict[str, Any]:
    """A description whose seal holds.

    Raises:
      CorruptCheckpoint: it does not.
    """
    about = {key: value for key, value in found.items() if key != "seal"} if found else {}
    if not about or found.get("seal") != digest(about):
        raise CorruptCheckpoint(f"{where}: its description changed since it was written")
    return about


def check_provenance(about: Mapping[str, Any], provenance: Provenance, where: str) -> None:
    """Refuses what another stage, other settings or other parent weights wrote.

    Raises:
      CheckpointError: names what differs.
    """
    if about["stage"] != provenance.stage:
        raise CheckpointError(
            f"{where}: written by stage {about['stage']!r}, this is stage {provenance.stage!r}; "
            "use another folder"
        )
    saved, now = _flat(about["config"]), _flat(json.loads(json.dumps(provenance.config)))
    keys = [key for key in sorted(saved.keys() | now.keys()) if not _is_free(key, provenance.free)]
    changed = [key for key in keys if saved.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(
            f"{key}: {saved.get(key)} saved, {now.get(key)} now" for key in changed[:12]
        )
        raise CheckpointError(
            f"{where}: other settings than this run's: {shown}; use another folder"
        )
    if about["parent"] != provenance.parent:
        raise CheckpointError(
            f"{where}: started from weights {about['parent']}, this run from {provenance.parent}; "
            "use another folder"
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a checkpoint means."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)
