"""One training step: micro-batches, one division, clip, update; or no update if not finite."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hypenet_jax import axes
from hypenet_jax.axes import Params, Scalar
from hypenet_jax.data.batch import Batch
from hypenet_jax.sharding import constrain, sharding_of
from hypenet_jax.train.optimizer import Optimizer
from hypenet_jax.train.stage import Mean, Stage
from hypenet_jax.train.state import TrainState, merge, split

Step = Callable[[TrainState, Params | None, Batch], tuple[TrainState, dict[str, Scalar]]]
_Sums = tuple[Params, Mean, dict[str, Mean]]


def make_train_step(
    stage: Stage, optimizer: Optimizer, *, accumulate: int, shardings: Any = None
) -> Step:
    """The jitted step (state, frozen, batch) -> (state, metrics). The state given is donated.

    gradient = (sum over micro-batches of d loss.total) / (sum of loss.weight), so the number of
    micro-batches does not change the update. If the loss or the gradient norm is not finite,
    parameters and optimizer state keep their bits, and metrics["skipped"] is 1.

    Args:
      accumulate: micro-batches per update; must divide the rows of the batch, into parts that divide over the mesh.
      shardings: a TrainState of shardings the new state must keep; None lets the compiler choose.
    Returns metrics, float32 scalars: `loss`, every metric of the stage, `grad_norm` (before
      clipping), `learning_rate`, `tokens` (not padding), `skipped`.
    """

    def step(state: TrainState, frozen: Params | None, batch: Batch):
        trained, fixed = split(state.params, stage.trainable)
        loss_of = stage.at(state.step)

        def gradients_of(micro: Batch) -> _Sums:
            def total(trained: Params):
                loss, means = loss_of(merge(trained, fixed), frozen, micro)
                return loss.total, (loss, means)

            gradients, (loss, means) = jax.grad(total, has_aux=True)(trained)
            return gradients, loss, means

        gradients, loss, means = _summed(gradients_of, batch, accumulate)
        gradients = jax.tree.map(lambda g: g / loss.weight, gradients)
        updated, opt_state, applied = optimizer.update(gradients, state.opt_state, trained)
        finite = jnp.isfinite(loss.value()) & jnp.isfinite(applied["grad_norm"])
        new, old = (updated, opt_state), (trained, state.opt_state)
        updated, opt_state = jax.tree.map(functools.partial(jnp.where, finite), new, old)
        metrics = {
            "loss": loss.value(),
            **{name: mean.value() for name, mean in means.items()},
            **applied,
            "tokens": jnp.sum(batch.segment_ids != 0).astype(jnp.float32),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        return TrainState(state.step + 1, merge(updated, fixed), opt_state), metrics

    out = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def _summed(function: Callable[[Batch], _Sums], batch: Batch, accumulate: int) -> _Sums:
    """Sum of a function over micro-batches, in a loop of one compiled body."""
    rows = batch.tokens.shape[0]
    if rows % accumulate:
        raise ValueError(f"a batch of {rows} rows does not split into {accumulate} micro-batches")
    if accumulate == 1:
        return function(batch)

    # Micro-batch i takes rows i, i + accumulate, ...: every device works on rows that it already holds.
    def cut(rows: Array) -> Array:
        parts = rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1)
        names = (None, axes.BATCH, axes.TIME)
        if not (mesh := jax.sharding.get_abstract_mesh()).empty:
            sharding_of(names, parts.shape, mesh, f"{accumulate} micro-batches")
        return constrain(parts, names)

    micros = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))

    def add(sums: _Sums, micro: Batch) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, sums, function(micro)), None

    return jax.lax.scan(add, zeros, micros)[0]
