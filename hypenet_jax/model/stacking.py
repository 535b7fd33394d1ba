"""Two arrangements of the same parameters: one tree per layer, or groups of equal layers stacked on axis 0.

Training scans over groups; decoding, weight files and transfer speak of single layers.
"""

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig


def group_names(config: ModelConfig, scan: bool) -> list[tuple[str, range]]:
    """Name and layers of each tree of parameters: of each group where `scan`, else of each layer."""
    if scan:
        return [(f"layers_{group[0]}_{group[-1]}", group) for group in config.layer_groups]
    return [(f"layer_{i}", range(i, i + 1)) for i in range(config.num_layers)]


def stack_layers(params: Params, config: ModelConfig) -> Params:
    """Single layers to the groups of `config`; parameters that are stacked already come back as they are."""
    if any(name.startswith("layers_") for name in params):
        return params
    stacked = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    for name, group in group_names(config, scan=True):
        layers = [params[f"layer_{i}"] for i in group]
        stacked[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return stacked


def unstack_layers(params: Params) -> Params:
    """Groups to single layers, whatever the config they were stacked for."""
    single = {}
    for name, tree in params.items():
        if not name.startswith("layers_"):
            single[name] = tree
            continue
        first, last = (int(part) for part in name.split("_")[1:])
        for row, layer in enumerate(range(first, last + 1)):
            single[f"layer_{layer}"] = jax.tree.map(lambda leaf, row=row: leaf[row], tree)
    return single
