"""Reads Hugging Face checkpoints straight into (sharded) arrays.

Orbax reads: each process only the bytes its devices hold, one file after the other. Each tensor is
then turned into our axes where it lies. No process ever holds the model.
"""

import pathlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from orbax.checkpoint import v1 as ocp

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, logical_axes
from hypenet_jax.sharding import sharding_of
from hypenet_jax.weights.hf_config import CheckpointError, read_config
from hypenet_jax.weights.names import HEAD, Tensor, flatten, nest, tensors
from hypenet_jax.weights.shards import DTYPES, Stored, check_tensors, find_tensors

Place: TypeAlias = Callable[[str, tuple[int, ...]], NamedSharding]
"""Path of a single-layer parameter ("layer_3/mixer/q/kernel") and its shape, to where it lives."""


def load_hf(
    folder: str | PathLike[str], *, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> tuple[Decoder, Params]:
    """A checkpoint folder as a model that runs: `decoder.apply({"params": params}, tokens)`.

    Args:
      folder: as transformers or `save_hf` write it; model_type "qwen3" or "hypenet".
      dtype: of the parameters and of the computation; None keeps what is stored.
      mesh: parameters are cut over it as `hypenet_jax.sharding` says; None puts all on this
        process's first device.
    Returns:
      A decoder with one module per layer (scan=False), and its parameters.
    Raises:
      CheckpointError: the folder is not exactly a model that is computed here; lists all reasons.
    """
    config, params = read_hf(folder, dtype=dtype, mesh=mesh)
    return Decoder(config, dtype=params["embed"]["embedding"].dtype, scan=False), params


def read_hf(
    folder: str | PathLike[str], *, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Architecture and parameters (single layers) of a folder; see `load_hf`."""
    folder = pathlib.Path(folder).absolute()
    config = read_config(folder)
    place = None if mesh is None else _places(config, mesh)
    wanted = tensors(config)
    stored = find_tensors(folder)
    check_tensors(folder, stored, wanted)
    if config.tie_embeddings and HEAD.theirs in stored:
        _check_redundant_head(folder, stored, wanted[0], place)
    by_file = defaultdict(list)
    for tensor in wanted:
        by_file[stored[tensor.theirs].file].append(tensor)
    leaves = {}
    for file, group in by_file.items():
        goals = {t.theirs: _goal(t, stored[t.theirs], dtype, place) for t in group}
        arrays = _read(file, goals)
        # One at a time, so that at most one tensor exists in both layouts.
        for t in group:
            sharding = place(t.ours, t.our_shape) if place else None
            leaves[t.ours] = _rearranged(arrays.pop(t.theirs), t.split, t.order, sharding)
    return config, nest({t.ours: leaves[t.ours] for t in wanted})


def _places(config: ModelConfig, mesh: Mesh) -> Place:
    names = flatten(logical_axes(Decoder(config, scan=False)))
    return lambda path, shape: sharding_of(names[path], shape, mesh, path)


def _read(
    file: pathlib.Path, goals: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Float[Array, "..."]]:
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    with context:
        return ocp.load(str(file), goals)


def _goal(
    tensor: Tensor, stored: Stored, dtype: DTypeLike | None, place: Place | None
) -> jax.ShapeDtypeStruct:
    kept = jnp.dtype(DTYPES[stored.dtype]) if dtype is None else jnp.dtype(dtype)
    sharding: Sharding = SingleDeviceSharding(jax.local_devices()[0])
    if place is not None:
        ours = place(tensor.ours, tensor.our_shape)
        sharding = NamedSharding(ours.mesh, PartitionSpec(*tensor.their_partition(ours.spec)))
    return jax.ShapeDtypeStruct(tensor.their_shape, kept, sharding=sharding)


@partial(jax.jit, static_argnames=("split", "order", "sharding"))
def _rearranged(
    array: Float[Array, "..."],
    split: Sequence[int],
    order: Sequence[int],
    sharding: NamedSharding | None,
) -> Float[Array, "..."]:
    ours = array.reshape(split).transpose(order)
    return ours if sharding is None else jax.lax.with_sharding_constraint(ours, sharding)


def _check_redundant_head(
    folder: pathlib.Path, stored: dict[str, Stored], embedding: Tensor, place: Place | None
) -> None:
    names = (embedding.theirs, HEAD.theirs)
    goals = {name: _goal(embedding, stored[name], None, place) for name in names}
    pair = [_read(stored[name].file, {name: goals[name]})[name] for name in names]
    if not jax.jit(jnp.array_equal)(*pair):
        raise CheckpointError(
            f"{folder} cannot be loaded: tie_word_embeddings is true but {HEAD.theirs} differs "
            f"from {embedding.theirs}; set tie_word_embeddings to false in config.json to keep both"
        )
