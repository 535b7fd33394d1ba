"""TrainState: what a run remembers between steps, and where it lies on the mesh."""

import typing
from collections.abc import Callable
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from hypenet_jax.axes import Params
from hypenet_jax.sharding import replicated
from hypenet_jax.train.optimizer import Optimizer

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
      opt_state: Adam moments of the trainable parameters only, and the number of updates applied.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.ScaleByAdamState


def split(params: Params, trainable: Callable[[Path], bool]) -> tuple[Params, Params]:
    """The tree cut in two: leaves that are trained, and leaves that stay."""
    leaves = flax.traverse_util.flatten_dict(params)
    moving = {path: leaf for path, leaf in leaves.items() if trainable(path)}
    staying = {path: leaf for path, leaf in leaves.items() if path not in moving}
    return flax.traverse_util.unflatten_dict(moving), flax.traverse_util.unflatten_dict(staying)


def merge(moving: Params, staying: Params) -> Params:
    """Inverse of `split`."""
    flatten = flax.traverse_util.flatten_dict
    return flax.traverse_util.unflatten_dict({**flatten(moving), **flatten(staying)})


def create_state(
    params: Params,
    trainable: Callable[[Path], bool],
    optimizer: Optimizer,
    shardings: Params | None = None,
) -> TrainState:
    """State before the first step. Parameters are copied, because training gives their buffers
    away.

    Args:
      params: the student; trainable floating leaves become float32.
      trainable: `Stage.trainable`.
      shardings: tree like `params` of NamedSharding; None keeps everything on the default device.
    """

    def build(params: Params) -> TrainState:
        moving, staying = split(params, trainable)
        moving = jax.tree.map(_master, moving)
        copied = jax.tree.map(jnp.copy, merge(moving, staying))
        return TrainState(jnp.zeros((), jnp.int32), copied, optimizer.init(moving))

    if not any(trainable(path) for path in flax.traverse_util.flatten_dict(params)):
        raise ValueError("the stage trains no leaf of these parameters: look at Stage.trainable")
    where = None if shardings is None else state_shardings(shardings, trainable)
    return jax.jit(build, out_shardings=where)(params)


def abstract_state(
    shapes: Params,
    trainable: Callable[[Path], bool],
    optimizer: Optimizer,
    shardings: Params | None = None,
) -> TrainState:
    """Shapes (and shardings) of `create_state` for these shapes of parameters; uses no memory."""
    state = jax.eval_shape(lambda params: create_state(params, trainable, optimizer), shapes)
    if shardings is None:
        return state
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        state_shardings(shardings, trainable),
    )


def state_shardings(shardings: Params, trainable: Callable[[Path], bool]) -> Any:
    """A TrainState of shardings: moments lie where their parameters lie, counters everywhere."""
    moving, _ = split(shardings, trainable)
    # Any: the fields hold shardings here, not the arrays they are declared as.
    everywhere: Any = replicated(jax.tree.leaves(shardings)[0].mesh)
    opt_state = optax.ScaleByAdamState(count=everywhere, mu=moving, nu=moving)
    return TrainState(everywhere, shardings, opt_state)


def _master(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
