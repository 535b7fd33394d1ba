"""Every parameter of a model with its name in Hugging Face checkpoints, read both ways.

The rules of mixers are in their files; those here are of what all layers share, without "layer_3/", "model.layers.3.".
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import flax.traverse_util
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.mixers.spec import Rule

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Groups: TypeAlias = tuple[tuple[int, ...], ...]

EMBEDDING = "embed/embedding"
WHOLE_MODEL = (
    Rule(EMBEDDING, "model.embed_tokens.weight", "v d -> v d"),
    Rule("final_norm/scale", "model.norm.weight", "d -> d"),
)
HEAD = Rule("head/kernel", "lm_head.weight", "v d -> v d")
TABLES = (EMBEDDING, HEAD.ours)
EVERY_LAYER = (
    Rule("mixer_norm/scale", "input_layernorm.weight", "d -> d"),
    Rule("mlp_norm/scale", "post_attention_layernorm.weight", "d -> d"),
    Rule("mlp/gate/kernel", "mlp.gate_proj.weight", "d f -> f d"),
    Rule("mlp/up/kernel", "mlp.up_proj.weight", "d f -> f d"),
    Rule("mlp/down/kernel", "mlp.down_proj.weight", "f d -> d f"),
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One parameter of one model: both names, both shapes, and the way between them.

    Attributes:
      ours, theirs: path of our parameter ("layer_3/mixer/q/kernel"), and name of the tensor in the checkpoint.
      groups: which of our axes, by index, each of their axes merges.
    """

    ours: str
    theirs: str
    our_shape: tuple[int, ...]
    their_shape: tuple[int, ...]
    groups: Groups

    def to_theirs(self, array: Any) -> Any:
        """Our array (numpy or jax) in their axes; numpy may give a view that is not contiguous."""
        return array.transpose(sum(self.groups, ())).reshape(self.their_shape)

    def their_partition(self, ours: Iterable[Any]) -> tuple[Any, ...]:
        """How their axes split over a mesh when ours split as `ours` says.

        A merged axis splits as its first letter; if its other letters split too, it is read whole.
        """
        of = [*ours, *[None] * len(self.our_shape)]
        whole = [g and all(of[axis] is None for axis in g[1:]) for g in self.groups]
        return tuple(of[g[0]] if ok else None for g, ok in zip(self.groups, whole, strict=True))


def to_ours(array: Any, our_shape: tuple[int, ...], groups: Groups) -> Any:
    """Their array (numpy or jax) in our axes, the inverse of `Tensor.to_theirs`; numpy gives a view."""
    back = sum(groups, ())
    return array.reshape([our_shape[axis] for axis in back]).transpose(np.argsort(back))


def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """Every parameter of the model, layer by layer, in the order a checkpoint lists them."""
    widths = {"v": config.vocab_size, "d": config.d_model, "f": config.d_mlp}
    embed, final_norm = (_tensor(rule, widths) for rule in WHOLE_MODEL)
    layers = [
        _tensor(rule, widths | spec.axis_sizes(), f"layer_{i}/", f"model.layers.{i}.")
        for i, spec in enumerate(config.mixers)
        for rule in (*EVERY_LAYER, *spec.rules())
    ]
    head = [] if config.tie_embeddings else [_tensor(HEAD, widths)]
    return (embed, *layers, final_norm, *head)


def shape_problems(found: Shapes, wanted: Shapes) -> list[str]:
    """What is missing, unexpected or of another shape, a line each."""
    named = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    named += [f"unexpected: {name} {found[name]}" for name in found if name not in wanted]
    return named + [
        f"misshapen: {name} is {shape}, the config needs {wanted[name]}"
        for name, shape in found.items()
        if wanted.get(name, shape) != shape
    ]


flatten: Callable[[Params], dict[str, Any]] = functools.partial(
    flax.traverse_util.flatten_dict, sep="/"
)
"""Nested dictionaries to paths joined by "/"."""

nest: Callable[[dict[str, Any]], dict[str, Any]] = functools.partial(
    flax.traverse_util.unflatten_dict, sep="/"
)
"""The inverse of `flatten`."""


def _tensor(rule: Rule, sizes: Mapping[str, int], ours: str = "", theirs: str = "") -> Tensor:
    left, right = rule.axes.split(" -> ")
    axes = left.split()
    groups = [(many or one).split() for many, one in re.findall(r"\(([^)]*)\)|(\w+)", right)]
    return Tensor(
        ours + rule.ours,
        theirs + rule.theirs,
        our_shape=tuple(sizes[a] for a in axes),
        their_shape=tuple(math.prod(sizes[a] for a in group) for group in groups),
        groups=tuple(tuple(axes.index(a) for a in group) for group in groups),
    )
