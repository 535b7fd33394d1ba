"""Whether a restored tree of arrays is the one that was written."""

from typing import Any

from hypenet_jax.fingerprint import Facts, leaf_facts
from hypenet_jax.train.errors import CorruptCheckpoint


def differences(saved: Facts, wanted: Facts) -> list[str]:
    """One line per leaf that is missing, unexpected, or of another shape or dtype."""
    lines = [f"{path}: not in the checkpoint" for path in wanted if path not in saved]
    lines += [f"{path}: in the checkpoint, not wanted here" for path in saved if path not in wanted]
    for path in wanted.keys() & saved.keys():
        for fact in ("shape", "dtype"):
            if saved[path][fact] != wanted[path][fact]:
                lines.append(
                    f"{path}: {fact} {saved[path][fact]} saved, {wanted[path][fact]} wanted"
                )
    return sorted(lines)


def verify(tree: Any, saved: Facts, where: str) -> None:
    """Raises CorruptCheckpoint naming the leaves whose content is not what was written."""
    found = leaf_facts(tree)
    bad = [path for path, facts in saved.items() if found[path] != facts]
    if bad:
        raise CorruptCheckpoint(
            f"{where}: content of {len(bad)} of {len(saved)} leaves changed since it was written: "
            + ", ".join(bad[:8])
        )
