"""AdamW with linear warm-up and cosine decay, as the published HALO stages use it."""

import dataclasses
import math
import typing

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from hypenet_jax.axes import Params, Scalar

NEVER_DECAYED = ("scale", "bias")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Numbers of the optimizer; the learning rates and steps belong to a run and have no default.

    Attributes:
      peak_lr: learning rate at the end of the warm-up.
      final_lr: learning rate at the last update; equal to peak_lr is constant after the warm-up.
      warmup_steps: updates of linear warm-up (W).
      steps: updates of the whole schedule (N); later ones keep final_lr.
      b1, b2, eps: Adam.
      weight_decay: decoupled, multiplied by the learning rate; norm scales, biases and 1-d leaves
        are exempt.
      clip_norm: largest global norm of the mean gradient; None does not clip.
      first_update_at_zero: count as the published code does, whose first update has learning rate
        0.
    """

    peak_lr: float
    final_lr: float
    warmup_steps: int
    steps: int
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    first_update_at_zero: bool = False

    def __post_init__(self) -> None:
        rates = (self.peak_lr, self.final_lr, self.eps)
        if not all(math.isfinite(x) and x > 0 for x in rates) or self.final_lr > self.peak_lr:
            raise ValueError(
                f"peak_lr {self.peak_lr}, final_lr {self.final_lr}, eps {self.eps}: "
                "all must be positive and final_lr at most peak_lr"
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be at least 0 and below steps {self.steps}"
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.weight_decay >= 0):
            raise ValueError(
                f"b1 {self.b1} and b2 {self.b2} must lie in [0, 1), "
                f"weight_decay {self.weight_decay} must not be negative"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm {self.clip_norm} must be positive, or None for no clipping"
            )


def learning_rate(config: OptimizerConfig, applied: Int[Array, ""] | int) -> Float[Array, ""]:
    """Learning rate of the next update after `applied` updates.

    peak * f(n) with f(n) = n/W for n < W, else r + (1-r) (1 + cos(pi p)) / 2, p = (n-W)/(N-W),
    r = final/peak. n is the number of the update, from 1: the first has peak/W, the last final.
    With `first_update_at_zero` n is one less, as in the published code.
    """
    warmup, floor = config.warmup_steps, config.final_lr / config.peak_lr
    n = jnp.asarray(applied, jnp.float32) + (0.0 if config.first_update_at_zero else 1.0)
    p = jnp.clip((n - warmup) / (config.steps - warmup), 0.0, 1.0)
    cosine = floor + (1.0 - floor) * (1.0 + jnp.cos(jnp.pi * p)) / 2.0
    return config.peak_lr * jnp.where(n < warmup, n / max(warmup, 1), cosine)


def decays(path: tuple[str, ...], ndim: int) -> bool:
    """Whether weight decay applies. Name before rank: stacked norm scales, [R, D], are exempt."""
    return ndim > 1 and path[-1] not in NEVER_DECAYED


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Clip, Adam, decoupled weight decay, learning rate: pure functions over float32 trees.

    The state is optax's ScaleByAdamState; its `count` is the number of updates applied, which the
    schedule reads.
    """

    config: OptimizerConfig

    def init(self, params: Params) -> optax.ScaleByAdamState:
        return typing.cast(optax.ScaleByAdamState, self._adam().init(params))

    def update(
        self, gradients: Params, state: optax.ScaleByAdamState, params: Params
    ) -> tuple[Params, optax.ScaleByAdamState, dict[str, Scalar]]:
        """New parameters, new state, and `grad_norm` (before clipping) and `learning_rate`."""
        config = self.config
        norm = optax.tree.norm(gradients)
        rate = learning_rate(config, jnp.asarray(state.count))
        if config.clip_norm is not None:
            factor = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, config.clip_norm))
            gradients = jax.tree.map(lambda g: g * factor, gradients)
        directions, new = self._adam().update(gradients, state)

        def moved(path: tuple[str, ...], value: Array, direction: Array) -> Array:
            decay = config.weight_decay if decays(path, value.ndim) else 0.0
            return value - rate * (direction + decay * value if decay else direction)

        values: dict = flax.traverse_util.flatten_dict(params)
        steps: dict = flax.traverse_util.flatten_dict(directions)
        params = {path: moved(path, value, steps[path]) for path, value in values.items()}
        facts = {"grad_norm": norm, "learning_rate": rate}
        return (
            flax.traverse_util.unflatten_dict(params),
            typing.cast(optax.ScaleByAdamState, new),
            facts,
        )

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.config.b1, self.config.b2, self.config.eps)
