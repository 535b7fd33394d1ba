"""Which run wrote a checkpoint: metadata with a checksum beside the arrays, compared with the run that reads it."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from hypenet_jax.fingerprint import digest
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What identifies a run. A checkpoint of another provenance is refused.

    Attributes:
      stage: name of the stage.
      config: resolved settings of the run, as JSON can hold them.
      parent: fingerprint of the weights the stage started from; None without a parent.
      resumable: dotted keys of `config` (or prefixes of them) that may differ when a run resumes.
    """

    stage: str
    config: Mapping[str, Any]
    parent: str | None = None
    resumable: tuple[str, ...] = ()

    def metadata(self, **entries: Any) -> dict[str, Any]:
        """Provenance, library versions and these entries as JSON can hold them, with a checksum over all of them."""
        metadata = {
            "stage": self.stage,
            "config": dict(self.config),
            "parent": self.parent,
            "versions": versions(),
            **entries,
        }
        return {**metadata, "checksum": digest(metadata)}


def verified_metadata(stored: Any, path: str) -> dict[str, Any]:
    """The metadata stored at this path, without its checksum.

    Raises:
      CorruptCheckpoint: the checksum does not match.
    """
    metadata = {key: value for key, value in stored.items() if key != "checksum"} if stored else {}
    if not metadata or stored.get("checksum") != digest(metadata):
        raise CorruptCheckpoint(
            f"{path}: its metadata changed since it was written, or an older version wrote it"
        )
    return metadata


def check_provenance(metadata: Mapping[str, Any], provenance: Provenance, path: str) -> None:
    """Refuses what another stage, other settings or other parent weights wrote.

    Raises:
      CheckpointError: names what differs.
    """
    if metadata["stage"] != provenance.stage:
        raise CheckpointError(
            f"{path}: written by stage {metadata['stage']!r}, this is stage {provenance.stage!r}; "
            "use another folder"
        )
    saved, now = _flat(metadata["config"]), _flat(json.loads(json.dumps(provenance.config)))
    keys = [
        key
        for key in sorted(saved.keys() | now.keys())
        if not any(key == name or key.startswith(f"{name}.") for name in provenance.resumable)
    ]
    changed = [key for key in keys if saved.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(
            f"{key}: {saved.get(key)} saved, {now.get(key)} now" for key in changed[:12]
        )
        raise CheckpointError(
            f"{path}: other settings than this run's: {shown}; use another folder"
        )
    if metadata["parent"] != provenance.parent:
        raise CheckpointError(
            f"{path}: started from weights {metadata['parent']}, this run from {provenance.parent}; "
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
