"""TrainState: what changes from step to step, and its shardings."""

import functools
import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hypenet_jax.axes import Params
from hypenet_jax.sharding import replicated
from hypenet_jax.train.optimizer import Optimizer, OptimizerState

Path = tuple[str, ...]


# Not checked at construction: tree functions build it with shapes or shardings as leaves.
@typing.no_type_check
@flax.struct.dataclass
class TrainState:
    """Everything that changes during training; the frozen teacher travels beside it and is never
    saved.

    Attributes:
      step: batches taken so far. A skipped (non-finite) update counts here, not in the optimizer.
      params: all student parameters; the trainable ones are float32 master weights.
      opt_state: of the trainable parameters only; whatever tree the optimizer makes.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: OptimizerState


def split(params: Params, trainable: Callable[[Path], bool]) -> tuple[Params, Params]:
    """The tree in two: leaves that are trained, and leaves that are frozen."""
    leaves = flax.traverse_util.flatten_dict(params)
    trained = {path: leaf for path, leaf in leaves.items() if trainable(path)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return flax.traverse_util.unflatten_dict(trained), flax.traverse_util.unflatten_dict(frozen)


def merge(trained: Params, frozen: Params) -> Params:
    """Inverse of `split`."""
    flatten = flax.traverse_util.flatten_dict
    return flax.traverse_util.unflatten_dict({**flatten(trained), **flatten(frozen)})


def create_state(
    params: Params,
    trainable: Callable[[Path], bool],
    optimizer: Optimizer,
    shardings: Params | None = None,
) -> TrainState:
    """State before the first step. Parameters are copied, because training donates their buffers.

    Args:
      params: the student; trainable floating leaves become float32.
      trainable: `Stage.trainable`.
      shardings: tree like `params` of NamedSharding; None keeps everything on the default device.
    Raises:
      ValueError: no leaf is trainable.
    """
    build = functools.partial(_build, trainable=trainable, optimizer=optimizer)
    out = None if shardings is None else state_shardings(jax.eval_shape(build, params), shardings)
    return jax.jit(build, out_shardings=out)(params)


def abstract_state(
    shapes: Params,
    trainable: Callable[[Path], bool],
    optimizer: Optimizer,
    shardings: Params | None = None,
) -> TrainState:
    """Shapes (and shardings) of `create_state` for these shapes of parameters; uses no memory."""
    state = jax.eval_shape(lambda params: _build(params, trainable, optimizer), shapes)
    if shardings is None:
        return state
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, shardings),
    )


def state_shardings(state: TrainState, shardings: Params) -> Any:
    """A TrainState of shardings, for any optimizer.

    A leaf whose path ends in that of a parameter of its shape (a moment) is sharded as that parameter is; all others
    (counters, factored moments) are replicated.
    """
    by_path: dict = flax.traverse_util.flatten_dict(shardings, sep="/")
    shapes: dict = flax.traverse_util.flatten_dict(state.params, sep="/")
    rest = replicated(next(iter(by_path.values())).mesh)

    def place(path: Any, leaf: Any) -> Any:
        keys = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        for first in range(len(keys)):
            name = "/".join(keys[first:])
            if name in by_path and shapes[name].shape == leaf.shape:
                return by_path[name]
        return rest

    return jax.tree_util.tree_map_with_path(place, state)


def _build(params: Params, trainable: Callable[[Path], bool], optimizer: Optimizer) -> TrainState:
    trained, frozen = split(params, trainable)
    if not trained:
        raise ValueError("the stage trains no leaf of these parameters: look at Stage.trainable")
    trained = jax.tree.map(_master, trained)
    copied = jax.tree.map(jnp.copy, merge(trained, frozen))
    return TrainState(jnp.zeros((), jnp.int32), copied, optimizer.init(trained))


def _master(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
