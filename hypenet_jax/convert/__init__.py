"""The whole journey: `run_stage` runs one stage, `convert` all of them and the evaluation after them."""

from hypenet_jax.convert.chain import convert, run_stage

__all__ = ["convert", "run_stage"]
