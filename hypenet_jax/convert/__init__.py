"""The whole journey: `train` a stage, `select` the softmax layers, `evaluate`, and `convert`, which does it all."""

from hypenet_jax.convert.chain import convert
from hypenet_jax.convert.evaluate import evaluate
from hypenet_jax.convert.selection import select
from hypenet_jax.convert.training import train

__all__ = ["convert", "evaluate", "select", "train"]
