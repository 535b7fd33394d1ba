"""What generation and evaluation need of a model, whether its state fits into memory, and what tells it from others."""

import os
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.fingerprint import digest, leaf_specs
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.cost import state_bytes
from hypenet_jax.model.vocabulary import without_padding


@runtime_checkable
class Model(Protocol):
    """A `Decoder`, or what stands in for one; hashable, to compile for it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> Any: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


def check_memory(decoder: Model, batch: int, capacity: int) -> None:
    """Raises MemoryError: a state of so many rows and tokens is larger than all memory of this machine.

    Only where the devices are CPUs: there the system would end the process; other devices refuse by themselves.
    """
    if jax.default_backend() != "cpu":
        return
    needed = batch * state_bytes(decoder.config, capacity, decoder.dtype) / jax.process_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise MemoryError(
            f"the state of {batch} rows of {capacity} tokens takes {needed / 2**30:.1f} GiB of this machine's "
            f"{memory / 2**30:.1f}; use a shorter length, or more machines"
        )


def model_fingerprint(decoder: Model, params: Params, *others: Any) -> str:
    """Hash of a model's weights, architecture and dtype, and of `others`, anything that JSON can hold.

    It is the same on every mesh and number of processes, and wherever the model's folder lies.
    """
    dtype = jnp.dtype(decoder.dtype).name
    params = without_padding(params, decoder.config.vocab_size)
    return digest([leaf_specs(params), repr(decoder.config), dtype, *others])
