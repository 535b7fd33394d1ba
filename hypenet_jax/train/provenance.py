"""Which run wrote a checkpoint: metadata with a checksum beside the arrays, compared with the run that reads it."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from hypenet_jax.fingerprint import differences, digest
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint

OLDER = "an older version of this code wrote it"


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
        run = {"stage": self.stage, "config": dict(self.config), "parent": self.parent}
        metadata = {**run, "versions": versions(), **entries}
        return {**metadata, "checksum": digest(metadata)}


def verified_metadata(stored: Any, path: Any) -> dict[str, Any]:
    """The metadata stored at this path, without its checksum; raises CorruptCheckpoint if that does not match."""
    metadata = dict(stored or {})
    checksum = metadata.pop("checksum", None)
    if metadata and checksum is None:
        raise CheckpointError(f"{path}: {OLDER}; use another folder")
    if checksum != digest(metadata):
        raise CorruptCheckpoint(f"{path}: its metadata changed since it was written")
    return metadata


def check_provenance(metadata: Mapping[str, Any], provenance: Provenance, path: Any) -> None:
    """Raises CheckpointError naming what differs, if another stage, other settings or other parent weights wrote it."""
    free = tuple(f"{name}." for name in provenance.resumable)

    def fixed(config: Any) -> dict[str, Any]:
        settings = flatten_dict(config, sep=".")
        return {key: value for key, value in settings.items() if not f"{key}.".startswith(free)}

    problem, settings = None, json.loads(json.dumps(provenance.config))
    fields = [f for f in other_fields(metadata["config"], settings) if not f"{f}.".startswith(free)]
    if fields:
        problem = f"{OLDER}: its settings have other fields ({', '.join(fields[:3])})"
    elif metadata["stage"] != provenance.stage:
        problem = f"written by stage {metadata['stage']!r}, this is stage {provenance.stage!r}"
    elif changed := differences(fixed(metadata["config"]), fixed(settings)):
        problem = f"other settings than this run's: {changed}"
    elif metadata["parent"] != provenance.parent:
        problem = f"started from weights {metadata['parent']}, this run from {provenance.parent}"
    if problem:
        raise CheckpointError(f"{path}: {problem}; use another folder")


def other_fields(saved: Any, now: Any, path: str = "") -> list[str]:
    """Fields that only one of two sections of the same kind has: another version of the code wrote one of them."""
    if isinstance(saved, list) and isinstance(now, list):
        pairs = zip(saved, now, strict=False)
        return [field for pair in pairs for field in other_fields(*pair, path)]
    if not isinstance(saved, Mapping) or not isinstance(now, Mapping) or "kind" not in now:
        return []
    if path and saved.get("kind") != now["kind"]:
        return []
    fields = [f"{path}{name}" for name in sorted(saved.keys() ^ now.keys())]
    for name in sorted(saved.keys() & now.keys()):
        fields += other_fields(saved[name], now[name], f"{path}{name}.")
    return fields


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a checkpoint means."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
