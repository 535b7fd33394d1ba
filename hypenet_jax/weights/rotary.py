"""Rotary positions in config.json: `rope_theta` and `rope_scaling`, or as of transformers 5 `rope_parameters`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hypenet_jax.model.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from hypenet_jax.weights.hf_fields import is_a

SCALINGS: Mapping[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}
TYPE = ("rope_type", "type")  # The second is how transformers 4 spelled it first.


def rotary_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """What of the rotary positions would not be computed exactly, one sentence each."""
    new, scalings = fields.get("rope_parameters"), []
    for name, more in (("rope_scaling", ()), ("rope_parameters", ("rope_theta",))):
        said = fields.get(name)
        wrong = list(_scaling_problems(said, more))
        yield from (f"{name} {said!r}: {problem}" for problem in wrong)
        scalings += [_scaling(said)] if said is not None and not wrong else []
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        yield f"rope_scaling and rope_parameters disagree: {scalings[0]} and {scalings[1]}"
    given = [fields.get("rope_theta"), new.get("rope_theta") if isinstance(new, dict) else None]
    bases = [base for base in given if base is not None]
    if not bases:
        yield "neither rope_theta nor rope_parameters gives the rotary base"
    elif not all(is_a(base, float) for base in bases):
        yield f"rope_theta must be float, got {bases!r}"
    elif len(set(bases)) > 1:
        yield f"rope_theta and rope_parameters disagree about the rotary base: {bases}"


def rotary_from_hf(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a config.json without `rotary_problems`."""
    new = fields.get("rope_parameters") or {}
    theta = new.get("rope_theta")
    theta = float(fields["rope_theta"] if theta is None else theta)
    return theta, _scaling(fields.get("rope_scaling") or new)


def rotary_to_hf(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The fields of both generations."""
    said: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        name = next(name for name, kind in SCALINGS.items() if kind is type(scaling))
        values = {f.name: (getattr(scaling, f.name), f) for f in dataclasses.fields(scaling)}
        numbers = {name: value for name, (value, f) in values.items() if value != f.default}
        said = {"rope_type": name, **numbers}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else said,
        "rope_parameters": {"rope_theta": theta, **said},
    }


def _scaling_problems(said: Any, more: tuple[str, ...]) -> Iterator[str]:
    if said is None:
        return
    if not isinstance(said, dict):
        yield "must be null or an object"
        return
    names = [said[key] for key in TYPE if said.get(key) is not None] or ["default"]
    if any(name != names[0] for name in names):
        yield f"rope_type and type disagree: {names}"
    elif not isinstance(names[0], str) or names[0] not in ("default", *SCALINGS):
        yield f"type {names[0]!r} is not supported, only default, {', '.join(SCALINGS)}"
    else:
        yield from _number_problems(said, SCALINGS.get(names[0]), {*TYPE, *more})


def _number_problems(
    said: Mapping[str, Any], kind: type[RopeScaling] | None, other: set[str]
) -> Iterator[str]:
    numbers = {} if kind is None else _numbers(kind)
    unknown = sorted(said.keys() - numbers.keys() - other)
    if unknown:
        yield f"unknown: {', '.join(unknown)}"
    wrong = {
        name: f"{name} must be {expected.__name__}, got {said.get(name)!r}"
        for name, (expected, required) in numbers.items()
        if (required or said.get(name) is not None) and not is_a(said.get(name), expected)
    }
    yield from wrong.values()
    if not wrong:
        try:
            _scaling(said)
        except ValueError as error:
            yield str(error)


def _numbers(kind: type[RopeScaling]) -> dict[str, tuple[type, bool]]:
    """Type of each number of a scaling, and whether it must be given."""
    return {
        f.name: (f.type if f.type in (int, bool) else float, f.default is dataclasses.MISSING)
        for f in dataclasses.fields(kind)
    }


def _scaling(said: Mapping[str, Any]) -> RopeScaling | None:
    kind = SCALINGS.get(next((said[key] for key in TYPE if said.get(key) is not None), "default"))
    if kind is None:
        return None
    numbers: Any = {
        name: number(said[name])
        for name, (number, _) in _numbers(kind).items()
        if said.get(name) is not None
    }
    return kind(**numbers)
