"""What answers depend on, in a few letters: what was kept for one model is never taken for another's."""

from typing import Any

import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.evals.model import Model
from hypenet_jax.train.fingerprint import digest, leaf_facts


def model_fingerprint(decoder: Model, params: Params, *others: Any) -> str:
    """Hash of a model's weights, architecture and dtype, and of `others`, anything that JSON can hold.

    It is the same on every mesh and number of processes, and wherever the model's folder lies.
    """
    dtype = jnp.dtype(decoder.dtype).name
    return digest([leaf_facts(params), repr(decoder.config), dtype, *others])
