"""Planning before renting: the real program compiled for devices that are not there, and what it needs."""

from hypenet_jax.plan.compiled import DoesNotFit
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.planning import nearest, plan
from hypenet_jax.plan.report import report
from hypenet_jax.plan.topology import TopologyError, here, parse

__all__ = [
    "DoesNotFit",
    "ServeConfig",
    "TopologyError",
    "here",
    "nearest",
    "parse",
    "plan",
    "report",
]
