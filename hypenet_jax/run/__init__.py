"""The whole journey: `train` a stage, `select` the softmax layers, `evaluate`, and `convert`, which does it all."""

from hypenet_jax.run.chain import convert
from hypenet_jax.run.evaluate import evaluate
from hypenet_jax.run.select import select
from hypenet_jax.run.train import train

__all__ = ["convert", "evaluate", "select", "train"]
