"""Weights of the terms of a loss that change from step to step."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Weight = float | tuple[tuple[int, float], ...]
"""A number, or pairs of a step and the weight there: linear between them, constant before the first and after the last.
A step is the number of batches taken before it."""


def knots(weight: Weight) -> tuple[tuple[int, float], ...]:
    """The pairs of a weight; a number is one pair."""
    return weight if isinstance(weight, tuple) else ((0, weight),)


def peak(weight: Weight) -> float:
    """The largest that it becomes."""
    return max(value for _, value in knots(weight))


def final(weight: Weight) -> float:
    """After its last step."""
    return knots(weight)[-1][1]


def weight_at(weight: Weight, step: Int[Array, ""]) -> Float[Array, ""] | float:
    """At a step; a number stays one."""
    if not isinstance(weight, tuple):
        return weight
    steps, values = (jnp.asarray(row, jnp.float32) for row in zip(*weight, strict=True))
    return jnp.interp(step.astype(jnp.float32), steps, values)


def problem(name: str, weight: Weight) -> str | None:
    """Why a weight cannot be used; None where it can."""
    pairs = knots(weight)
    steps = [step for step, _ in pairs]
    if not pairs or steps[0] < 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        return f"{name} needs steps that rise from 0 or later, not {steps}"
    if any(not 0 <= value < math.inf for _, value in pairs):
        return f"{name} needs weights of at least 0"
    return None


def vanishes_at(weights: Sequence[Weight]) -> int | None:
    """The first step at which all are 0; None where there is none.

    Between two of all their steps each is linear and never below 0, so only these have to be looked at.
    """
    steps = sorted({step for weight in weights for step, _ in knots(weight)})
    # In numpy: a config is built before JAX may ask for its devices.
    tables = [np.asarray(knots(weight)).T for weight in weights]
    return next((n for n in steps if not any(np.interp(n, t[0], t[1]) for t in tables)), None)
