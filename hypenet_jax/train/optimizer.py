"""The optimizer of a run: clipping, then any optimizer of optax (AdamW, as the published HALO stages use it), with
linear warm-up and cosine decay.
"""

import dataclasses
import functools
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, path_aware_map
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Params, Scalar
from hypenet_jax.train.rates import Rates, scaled

NEVER_DECAYED = ("scale", "bias", "log_rate")
_FORWARDED = ("b1", "b2", "eps", "weight_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Numbers of the optimizer; the learning rates and steps belong to a run and have no default.

    Attributes:
      peak_lr: learning rate at the end of the warm-up.
      final_lr: learning rate at the last update; equal to peak_lr is constant after the warm-up.
      warmup_steps: updates of linear warm-up (W).
      steps: updates of the whole schedule (N); later ones keep final_lr.
      name: import path of an optimizer, a function that takes `learning_rate` and returns an optax
        transformation: "optax.adamw", "optax.lion", "optax.contrib.muon" or one of yours.
      options: further arguments of that function, as pairs of name and value; they win over the next four.
      b1, b2, eps, weight_decay: go to any optimizer that has a parameter of that name, or of that name after `adam_`
        (Muon's, for leaves that are no matrices), in place of its own default: Lion gets b2 = 0.95, Adafactor
        eps = 1e-8. Norm scales, biases, rates of decays and 1-d leaves do not decay.
      clip_norm: largest global norm of the mean gradient; None does not clip.
      rates: pairs of a pattern and a factor on the learning rate of the parameters whose paths match, 0 for frozen
        ones; see `train/rates.py`. Where layers are stacked, a mixer's name before a slash stands for all groups of
        layers that have it: "lightning/mixer/*".
      average_decay: most that an average of the weights keeps of itself in an update; the stage then evaluates and
        leaves that average. None keeps none.
      weights: precision of the trained parameters and of the optimizer's state between updates. bfloat16 is that of the
        official 2B and 5B, where most updates of 1e-5 change nothing; what a stage leaves is float32 either way.
      first_update_at_zero: count as the published code does, whose first update has learning rate 0.
    """

    peak_lr: float
    final_lr: float
    warmup_steps: int
    steps: int
    name: str = "optax.adamw"
    options: tuple[tuple[str, bool | int | float | str], ...] = ()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    rates: Rates = ()
    average_decay: float | None = None
    weights: Literal["float32", "bfloat16"] = "float32"
    first_update_at_zero: bool = False

    def __post_init__(self) -> None:
        rules = {
            "0 < final_lr <= peak_lr": 0 < self.final_lr <= self.peak_lr < math.inf,
            "0 <= warmup_steps < steps": 0 <= self.warmup_steps < self.steps,
            "b1 and b2 in [0, 1)": 0 <= self.b1 < 1 and 0 <= self.b2 < 1,
            "eps > 0": 0 < self.eps < math.inf,
            "weight_decay >= 0": self.weight_decay >= 0,
            "clip_norm > 0, or None for no clipping": self.clip_norm is None or self.clip_norm > 0,
            "float32 weights where they are averaged": self.average_decay is None
            or self.weights == "float32",
            "average_decay in (0, 1), or None": self.average_decay is None
            or 0 < self.average_decay < 1,
            "rates of at least 0": all(0 <= rate < math.inf for _, rate in self.rates),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(f"{self} needs {', '.join(broken)}")
        accepted = inspect.signature(self.function()).parameters
        given = ["learning_rate"] + [name for name, _ in self.options]
        given += [
            name
            for name in _FORWARDED
            if getattr(self, name) != getattr(type(self), name) and f"adam_{name}" not in accepted
        ]
        if unknown := [name for name in given if name not in accepted]:
            raise ValueError(
                f"{self.name} takes no {', '.join(unknown)}; it takes {', '.join(accepted)}"
            )

    def function(self) -> Callable[..., optax.GradientTransformation]:
        """The function that `name` names; raises ValueError if there is none."""
        try:
            return pkgutil.resolve_name(self.name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"name {self.name!r} is no import path of an optimizer, such as optax.adamw ({error})"
            ) from error


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


def decay_mask(params: Params) -> Params:
    """Which leaves decay. Name before rank: stacked norm scales, [R, D], are exempt."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and path[-1].key not in NEVER_DECAYED, params
    )


class OptimizerState(NamedTuple):
    """The number of updates so far, which the learning rate follows, the state of the optax transformation, and where
    the config asks for one the average of the parameters.
    """

    applied: Int[Array, ""]
    inner: Any
    average: Any = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Pure functions over trees of parameters: gradients to updated parameters.

    Attributes:
      logical_axes: axis names of each parameter, a tree like theirs with the leaves that are not
        trained or without; from them Muon knows which axes of a kernel are inputs and which outputs.
        Without them it takes 2-d leaves alone, and Adam updates all others.
    """

    config: OptimizerConfig
    logical_axes: Params | None = None

    @functools.cached_property
    def transformation(self) -> optax.GradientTransformation:
        """The chain of optax: clip, then the optimizer with the arguments it has parameters for."""
        config, make = self.config, self.config.function()
        arguments: dict[str, Any] = {
            "learning_rate": functools.partial(learning_rate, config),
            "mask": decay_mask,
            "weight_decay_mask": decay_mask,
            "muon_weight_dimension_numbers": self.logical_axes and self._matrices,
        }
        for name in _FORWARDED:
            arguments[name] = arguments[f"adam_{name}"] = getattr(config, name)
        accepted = inspect.signature(make).parameters
        known = {name: value for name, value in arguments.items() if name in accepted}
        optimizer = make(**known | dict(config.options))
        if config.clip_norm is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)

    def init(self, params: Params) -> OptimizerState:
        """State before the first update of these parameters."""
        average = None
        if self.config.average_decay is not None:
            average = jax.tree.map(jnp.copy, params)
        return OptimizerState(jnp.zeros((), jnp.int32), self.transformation.init(params), average)

    def update(
        self, gradients: Params, state: OptimizerState, params: Params
    ) -> tuple[Params, OptimizerState, dict[str, Scalar]]:
        """New parameters, new state, and `grad_norm` (before clipping) and `learning_rate`."""
        norm = optax.tree.norm(gradients)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)
        updates, inner = self.transformation.update(gradients, state.inner, params)
        updated: Any = optax.apply_updates(params, scaled(self.config.rates, updates))
        metrics = {
            "grad_norm": norm,
            "learning_rate": learning_rate(self.config, state.applied),
        }
        average = self._averaged(state, updated)
        return updated, OptimizerState(state.applied + 1, inner, average), metrics

    def _averaged(self, state: OptimizerState, updated: Params) -> Any:
        """a += (1 - d) (parameters - a), d = min(average_decay, n / (n + 10)) in update n, so that the start is soon
        forgotten.
        """
        decay = self.config.average_decay
        if decay is None:
            return None
        n = state.applied.astype(jnp.float32) + 1
        share = 1 - jnp.minimum(decay, n / (n + 10))
        return jax.tree.map(lambda a, new: a + share * (new - a), state.average, updated)

    def _matrices(self, params: Params) -> Params:
        """Muon's dimension numbers of every kernel, None for other leaves."""
        names: dict = flatten_dict(self.logical_axes)
        return path_aware_map(lambda path, _: matrix_axes(tuple(names[path])), params)


def matrix_axes(names: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter are inputs and which outputs of one matrix; None for embeddings, heads and vectors.

    The axis of the model width is one side and all others are the other; stacked layers are matrices of their own.
    """
    inner = [i for i, name in enumerate(names) if name != axes.LAYERS]
    if axes.EMBED not in names or axes.VOCAB in names or len(inner) < 2:
        return None
    width = names.index(axes.EMBED)
    others = tuple(i for i in inner if i != width)
    sides = ((width,), others) if width == inner[0] else (others, (width,))
    return optax.contrib.MuonDimensionNumbers(*sides)
