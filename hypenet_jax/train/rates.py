"""What trains and how fast: factors on the learning rate by the path of a parameter; a factor of 0 freezes."""

import collections
import fnmatch
import math
from collections.abc import Callable
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from hypenet_jax.axes import Params

Rates = tuple[tuple[str, float], ...]
"""Pairs of a shell pattern of paths, such as "*/mlp/*", and a factor: of the first that matches, 1 where none does."""
Path = tuple[str, ...]


def factor(rates: Rates, path: Path) -> float:
    """The factor on the learning rate of the parameter at a path."""
    place = _decides(rates, path)
    return 1.0 if place is None else rates[place][1]


def scaled(rates: Rates, updates: Any) -> Any:
    """Updates times the factors of their parameters."""
    if not rates:
        return updates
    leaves: dict = flatten_dict(updates)
    return unflatten_dict({path: factor(rates, path) * leaf for path, leaf in leaves.items()})


def check_rates(rates: Rates, params: Params) -> None:
    """Raises ValueError if a pattern decides over none of these parameters, or nothing is left to train."""
    leaves: dict = flatten_dict(params)
    paths = [*leaves]
    used = {_decides(rates, path) for path in paths}
    if idle := [pattern for place, (pattern, _) in enumerate(rates) if place not in used]:
        raise ValueError(
            f"rates: {', '.join(idle)} decides over no parameter: none matches, or an earlier pattern does; "
            f"paths are like {', '.join('/'.join(path) for path in paths[:3])}"
        )
    if not any(factor(rates, path) for path in paths):
        raise ValueError(
            "rates: every parameter is frozen; leave one a factor above 0, or the stage out"
        )


def summary(rates: Rates, params: Params, trainable: Callable[[Path], bool]) -> str:
    """In a line: how many of these parameters train, and how many have a factor of their own or are frozen."""
    counts, arrays = collections.Counter(), collections.Counter()
    leaves: dict = flatten_dict(params)
    for path, leaf in leaves.items():
        own = factor(rates, path) if trainable(path) else 0.0
        counts[own] += math.prod(leaf.shape)
        arrays[own] += 1
    total = sum(counts.values())
    parts = [f"trains {total - counts[0.0]:,} of {total:,} parameters"]
    for own in sorted(set(arrays) - {1.0}, reverse=True):
        name = f"at {own:g} of the learning rate" if own else "frozen"
        parts.append(f"{name}: {counts[own]:,} in {arrays[own]} arrays")
    return "; ".join(parts)


def _decides(rates: Rates, path: Path) -> int | None:
    """Place of the pattern that decides over a path."""
    name = "/".join(path)
    matching = (n for n, (pattern, _) in enumerate(rates) if fnmatch.fnmatchcase(name, pattern))
    return next(matching, None)
