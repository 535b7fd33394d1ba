"""Reads Hugging Face checkpoints straight into (sharded) arrays.

Orbax reads: each process only the bytes its devices hold, one file after the other. Each tensor is then turned into our
axes where it lies. No process ever holds the model.
"""

import math
import pathlib
from collections.abc import Mapping
from functools import partial
from os import PathLike

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from orbax.checkpoint import v1 as ocp

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.explicit_axes import automatic
from hypenet_jax.hub import model_folder
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, logical_axes
from hypenet_jax.model.vocabulary import padded_rows, with_rows
from hypenet_jax.sharding import num_parts, on_mesh, sharding_of
from hypenet_jax.weights.hf_config import CheckpointError, read_config
from hypenet_jax.weights.names import HEAD, TABLES, Groups, Tensor, flatten, nest, tensors, to_ours
from hypenet_jax.weights.shards import DTYPES, Stored, check_tensors, find_tensors


def load_hf(
    folder: str | PathLike[str], *, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> tuple[Decoder, Params]:
    """A checkpoint folder as a model that runs, its layers single: `decoder.apply({"params": params}, tokens)`.

    Args:
      folder: as transformers or `save_hf` write it, or the name of one in the local cache of Hugging Face, org/name or
        org/name@revision (`model_folder`); model_type "hypenet" or one of `FAMILIES`.
      dtype: of the parameters and of the computation; None keeps what is stored.
      mesh: any that `jax.make_mesh` makes; None puts all on this process's first device. Its axes mean what they are
        called: `data` repeats the parameters, `fsdp` cuts their width, `tensor` their heads, MLP and vocabulary,
        `sequence` nothing of them; what has another name is one more `fsdp`. Explicit axes stay explicit in the types
        of the parameters. A vocabulary that does not divide is padded with rows of zeros, which no logits, losses or
        saved folders have.
    Raises:
      FileNotFoundError: a name that is not in the cache; says how to download it, which is never done here.
      CheckpointError: the folder is not exactly a model that is computed here; lists all reasons.
    """
    folder = model_folder(folder).absolute()
    config = read_config(folder)
    parts = 1 if mesh is None else num_parts(axes.VOCAB, mesh)
    multiple = parts if config.vocab_size % parts else 1
    params = _read_params(folder, config, multiple, dtype, mesh)
    of_all = params["embed"]["embedding"].dtype
    return Decoder(config, dtype=of_all, scan=False, vocab_multiple=multiple), params


def read_hf(
    folder: str | PathLike[str], *, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Architecture and parameters (single layers) of a folder; as `load_hf`, but nothing is padded."""
    folder = model_folder(folder).absolute()
    config = read_config(folder)
    return config, _read_params(folder, config, 1, dtype, mesh)


def _read_params(
    folder: pathlib.Path,
    config: ModelConfig,
    multiple: int,
    dtype: DTypeLike | None,
    mesh: Mesh | None,
) -> Params:
    wanted, stored = tensors(config), find_tensors(folder)
    check_tensors(folder, stored, wanted)
    shapes = {t.ours: t.our_shape for t in wanted}
    rows = padded_rows(config.vocab_size, multiple)
    shapes |= {path: (rows, *shapes[path][1:]) for path in TABLES if path in shapes}
    shardings = {} if mesh is None else _shardings(config, shapes, automatic(mesh))
    if config.tie_embeddings and HEAD.theirs in stored:
        _check_redundant_head(folder, stored, wanted[0], shardings.get(wanted[0].ours))
    leaves = {}
    with on_mesh(None if mesh is None else automatic(mesh)):
        for file in sorted({stored[t.theirs].file for t in wanted}):
            group = [t for t in wanted if stored[t.theirs].file == file]
            of = {t.theirs: shardings.get(t.ours) for t in group}
            goals = {t.theirs: _goal(t, stored[t.theirs], dtype, of[t.theirs]) for t in group}
            arrays = _read(file, goals)
            # One at a time, so that at most one tensor exists in both layouts.
            for t in group:
                layout = (t.our_shape, t.groups, shapes[t.ours], of[t.theirs])
                leaves[t.ours] = _rearranged(arrays.pop(t.theirs), *layout)
    if mesh is not None:
        leaves = {path: _relabelled(leaf, mesh) for path, leaf in leaves.items()}
    return nest({t.ours: leaves[t.ours] for t in wanted})


def _shardings(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh
) -> dict[str, NamedSharding]:
    names = flatten(logical_axes(Decoder(config, scan=False)))
    return {path: sharding_of(names[path], shape, mesh, path) for path, shape in shapes.items()}


def _relabelled(leaf: jax.Array, mesh: Mesh) -> jax.Array:
    """The same buffers on the mesh that was asked for, whose axes may be explicit."""
    assert isinstance(leaf.sharding, NamedSharding)
    return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))


def _read(
    file: pathlib.Path, goals: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Float[Array, "..."]]:
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    with context:
        return ocp.load(str(file), goals)


def _goal(
    tensor: Tensor, stored: Stored, dtype: DTypeLike | None, ours: NamedSharding | None
) -> jax.ShapeDtypeStruct:
    dtype = jnp.dtype(DTYPES[stored.dtype] if dtype is None else dtype)
    sharding: Sharding = SingleDeviceSharding(jax.local_devices()[0])
    if ours is not None:
        rows, *others = tensor.their_partition(ours.spec)
        names = (rows,) if isinstance(rows, str) else rows or ()
        if tensor.their_shape[0] % math.prod(ours.mesh.shape[name] for name in names):
            rows = None  # a vocabulary that is padded when it is there
        sharding = NamedSharding(ours.mesh, PartitionSpec(rows, *others))
    return jax.ShapeDtypeStruct(tensor.their_shape, dtype, sharding=sharding)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _rearranged(
    array: Float[Array, "..."],
    shape: tuple[int, ...],
    groups: Groups,
    padded: tuple[int, ...],
    sharding: NamedSharding | None,
) -> Float[Array, "..."]:
    ours = to_ours(array, shape, groups)
    if padded != shape:
        ours = with_rows(ours, padded[0])
    return ours if sharding is None else jax.lax.with_sharding_constraint(ours, sharding)


def _check_redundant_head(
    folder: pathlib.Path, stored: dict[str, Stored], embedding: Tensor, ours: NamedSharding | None
) -> None:
    pair = [
        _read(stored[name].file, {name: _goal(embedding, stored[name], None, ours)})[name]
        for name in (embedding.theirs, HEAD.theirs)
    ]
    if not jax.jit(jnp.array_equal)(*pair):
        raise CheckpointError(
            f"{folder} cannot be loaded: tie_word_embeddings is true but {HEAD.theirs} differs "
            f"from {embedding.theirs}; set tie_word_embeddings to false in config.json to keep both"
        )
