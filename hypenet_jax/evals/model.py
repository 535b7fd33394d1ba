"""What is measured: a model with its parameters and its name; and how rows of tokens are dealt to batches."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.sharding import sharding_of

# Tokens of one forward pass on a device: rows get fewer as they get longer, so memory and time per batch stay about
# the same.
TOKENS_PER_BATCH = 8192


@runtime_checkable
class Model(Protocol):
    """What an evaluation asks of a model: a `Decoder`, or what stands in for one; hashable, to compile for it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


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


def batches_of(
    rows: Int[np.ndarray, "R T"], tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[tuple[Int[np.ndarray, "B T"], int]]:
    """Batches of one shape, and how many of their rows are real: the last is filled up with its own last row.

    On a mesh a batch has that many rows for every part into which the mesh cuts it.
    """
    parts = batch_parts()
    size = parts * max(1, min(-(-len(rows) // parts), tokens_per_batch // rows.shape[1]))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filling = np.repeat(batch[-1:], size - len(batch), axis=0)
        yield np.concatenate([batch, filling]), len(batch)


def batch_parts() -> int:
    """Into how many parts the mesh cuts a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    whole = (mesh.size,)
    return mesh.size // sharding_of((axes.BATCH,), whole, mesh).shard_shape(whole)[0]
