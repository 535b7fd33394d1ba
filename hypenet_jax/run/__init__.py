"""The whole journey: `train` one stage, `select` the softmax layers, `evaluate` the result, `convert` stage after stage."""

from hypenet_jax.run.chain import convert
from hypenet_jax.run.evaluate import evaluate
from hypenet_jax.run.select import select
from hypenet_jax.run.train import train

__all__ = ["convert", "evaluate", "select", "train"]
