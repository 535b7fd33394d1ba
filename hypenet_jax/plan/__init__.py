"""Ahead-of-time plans: a config's real program compiled for devices this machine lacks, with its memory and time."""

from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.planning import DoesNotFit, nearest, plan
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
