"""What is measured: a model with its parameters and its name."""

import dataclasses
import functools
from typing import Any

import jax
from jax.typing import DTypeLike

from hypenet_jax.axes import Params
from hypenet_jax.generation.model import Model
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.stacking import unstack_layers


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """A model as it is measured.

    Attributes:
      name: of the model in every row of the report.
      decoder: with `scan` as the parameters are grouped.
      params: of the decoder.
    """

    name: str
    decoder: Model
    params: Params

    def with_single_layers(self) -> "EvalModel":
        """The same model with every layer alone, as decoding wants it: a scan would copy the caches."""
        assert isinstance(self.decoder, Decoder)
        decoder = self.decoder.clone(scan=False, remat="none")
        return EvalModel(self.name, decoder, unstack_layers(self.params))


def random_model(name: str, config: ModelConfig, dtype: DTypeLike) -> EvalModel:
    """A model whose weights are random numbers of `dtype`, for what does not depend on them, such as times."""
    decoder = Decoder(config, dtype, scan=False)
    shapes = jax.eval_shape(functools.partial(init_params, decoder), jax.random.key(0))
    # 0.02 as models start: activations stay finite through any depth.
    return EvalModel(name, decoder, random_like(shapes, dtype=dtype, scale=0.02))


def random_like(shapes: Any, *, dtype: DTypeLike | None = None, scale: float = 1.0) -> Any:
    """Normal random numbers times `scale` in the shapes of a tree, and in its dtypes where no other is given."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        scale * jax.random.normal(key, leaf.shape, dtype or leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)
