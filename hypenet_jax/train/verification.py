"""Whether restored arrays are those that were written, and fit those that the run expects."""

from typing import Any

from hypenet_jax.fingerprint import LeafSpecs, leaf_specs
from hypenet_jax.train.errors import CheckpointError, CorruptCheckpoint


def differences(saved: LeafSpecs, expected: LeafSpecs) -> list[str]:
    """One line per leaf that is missing, unexpected, or of another shape or dtype."""
    lines = [f"{path}: not in the checkpoint" for path in expected if path not in saved]
    lines += [f"{path}: in the checkpoint, not expected" for path in saved if path not in expected]
    lines += [
        f"{path}: {field} {saved[path][field]} saved, {expected[path][field]} expected"
        for path in expected.keys() & saved.keys()
        for field in ("shape", "dtype")
        if saved[path][field] != expected[path][field]
    ]
    return sorted(lines)


def check_leaves(saved: LeafSpecs, expected: LeafSpecs, path: str) -> None:
    """Raises CheckpointError listing the leaves with other paths, shapes or dtypes than expected."""
    lines = differences(saved, expected)
    if lines:
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise CheckpointError(f"{path}: does not fit:\n  " + "\n  ".join(lines[:12]) + more)


def verify(tree: Any, saved: LeafSpecs, path: str) -> None:
    """Raises CorruptCheckpoint naming the leaves whose content is not what was written."""
    restored = leaf_specs(tree)
    bad = [leaf for leaf, spec in saved.items() if restored[leaf] != spec]
    if bad:
        raise CorruptCheckpoint(
            f"{path}: content of {len(bad)} of {len(saved)} leaves changed since it was written: "
            + ", ".join(bad[:8])
        )
