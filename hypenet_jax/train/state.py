"""TrainState: what changes from step to step, and its shardings."""

import functools
import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int

from hypenet_jax.axes import Params
from hypenet_jax.sharding import replicated
from hypenet_jax.train.optimizer import Optimizer, OptimizerState

Path = tuple[str, ...]


# Not checked at construction: tree functions build it with shapes or shardings as leaves.
@typing.no_type_check
@flax.struct.dataclass
class TrainState:
    """Everything that changes during training; the frozen teacher is beside it and never saved.

    Attributes:
      step: batches taken so far. A skipped (non-finite) update counts here, not in the optimizer.
      params: all student parameters; the trainable ones are master weights, in the precision of the optimizer.
      opt_state: of the trainable parameters only; whatever tree the optimizer makes.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: OptimizerState

    @property
    def weights(self) -> Params:
        """What is evaluated and left in the end: averages of what is trained if the optimizer keeps them."""
        average = self.opt_state.average
        return self.params if average is None else merge(self.params, average)


def split(params: Params, trainable: Callable[[Path], bool]) -> tuple[Params, Params]:
    """The tree in two: leaves that are trained, and leaves that are frozen."""
    leaves = flatten_dict(params)
    trained = {path: leaf for path, leaf in leaves.items() if trainable(path)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def merge(trained: Params, frozen: Params) -> Params:
    """Inverse of `split`; where both have a leaf, the second one's."""
    return unflatten_dict({**flatten_dict(trained), **flatten_dict(frozen)})


def create_state(
    params: Params,
    trainable: Callable[[Path], bool],
    optimizer: Optimizer,
    shardings: Params | None = None,
) -> TrainState:
    """State before the first step. Parameters are copied, because training donates their buffers.

    Args:
      params: the student; leaves that are `trainable`, see Stage, get the precision of the optimizer's config.
      shardings: tree like `params` of NamedSharding; None keeps everything on the default device.
    Raises:
      ValueError: no leaf is trainable.
    """
    build = functools.partial(_build, trainable=trainable, optimizer=optimizer)
    out = None if shardings is None else state_shardings(jax.eval_shape(build, params), shardings)
    return jax.jit(build, out_shardings=out)(params)


def abstract_state(
    shapes: Params, trainable: Callable[[Path], bool], optimizer: Optimizer, shardings: Params
) -> TrainState:
    """Shapes and shardings of `create_state` for these shapes of parameters; uses no memory."""
    state = jax.eval_shape(lambda params: _build(params, trainable, optimizer), shapes)
    placed = state_shardings(state, shardings)
    return jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), state, placed)


def state_shardings(state: TrainState, shardings: Params) -> Any:
    """A TrainState of shardings, for any optimizer.

    A leaf whose path ends in that of a parameter of its shape (a moment) is sharded as that parameter is; all others
    (counters, factored moments) are replicated.
    """
    by_path: dict = flatten_dict(shardings)
    shapes: dict = flatten_dict(state.params)
    rest = replicated(next(iter(by_path.values())).mesh)

    def place(path: Any, leaf: Any) -> Any:
        keys = tuple(getattr(key, "key", None) for key in path)
        ends = (keys[first:] for first in range(len(keys)))
        fits = (end for end in ends if end in by_path and shapes[end].shape == leaf.shape)
        return by_path.get(next(fits, ()), rest)

    return jax.tree_util.tree_map_with_path(place, state)


def _build(params: Params, trainable: Callable[[Path], bool], optimizer: Optimizer) -> TrainState:
    trained, frozen = split(params, trainable)
    if not trained:
        raise ValueError("the stage trains no leaf of these parameters: look at Stage.trainable")
    trained = jax.tree.map(lambda leaf: leaf.astype(optimizer.config.weights), trained)
    copied = jax.tree.map(jnp.copy, merge(trained, frozen))
    return TrainState(jnp.zeros((), jnp.int32), copied, optimizer.init(trained))
