"""Two groupings of the same parameters: every layer alone, or runs of equal layers stacked on axis 0.

Training scans over runs; decoding, weight files and transfer speak of single layers.
"""

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig


def group_names(config: ModelConfig, scan: bool) -> list[tuple[str, range]]:
    """Name and layers of each group of parameters."""
    if scan:
        return [(f"layers_{run[0]}_{run[-1]}", run) for run in config.runs]
    return [(f"layer_{i}", range(i, i + 1)) for i in range(config.num_layers)]


def is_stacked(params: Params) -> bool:
    return any(name.startswith("layers_") for name in params)


def stack_layers(params: Params, config: ModelConfig) -> Params:
    """Single layers to the runs of `config`; parameters that are stacked already come back as they are."""
    if is_stacked(params):
        return params
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    runs = {
        name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[f"layer_{i}"] for i in run))
        for name, run in group_names(config, scan=True)
    }
    return {**rest, **runs}


def unstack_layers(params: Params) -> Params:
    """Runs to single layers, whatever the plan they were stacked for."""
    single = {}
    for name, tree in params.items():
        if not name.startswith("layers_"):
            single[name] = tree
            continue
        first, last = (int(part) for part in name.split("_")[1:])
        for row, layer in enumerate(range(first, last + 1)):
            single[f"layer_{layer}"] = jax.tree.map(lambda leaf, row=row: leaf[row], tree)
    return single
