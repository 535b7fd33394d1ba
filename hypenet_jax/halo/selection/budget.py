"""How many softmax layers a decode step of a given cost leaves room for."""

import functools

import jax.numpy as jnp

from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, ModelConfig, hypenet
from hypenet_jax.model.cost import decode_work

DTYPE = jnp.bfloat16  # of weights and caches, as models are exported


@functools.cache
def decode_bytes(
    teacher: ModelConfig,
    mixer: str,
    kept: int,
    tokens: int,
    recurrent: MixerOptions = AS_PUBLISHED,
) -> int:
    """Bytes read and written to decode one token of one row of `tokens`, in bfloat16, with `kept` softmax layers.

    Which layers they are does not matter: those of a teacher are equal, see `aligned_spec`. They have what those of the
    published models have; `recurrent` says it of the others.
    """
    student = hypenet(teacher, tuple(range(kept)), mixer=mixer, recurrent=recurrent)
    return decode_work(student, tokens, DTYPE).bytes


def most_layers(
    teacher: ModelConfig,
    mixer: str,
    *,
    tokens: int,
    at_most: int,
    recurrent: MixerOptions = AS_PUBLISHED,
) -> int:
    """The most softmax layers with which `decode_bytes` is at most `at_most`.

    Raises:
      ValueError: it is more with any number of them.
    """
    count = teacher.num_layers
    none, all_ = (decode_bytes(teacher, mixer, kept, tokens, recurrent) for kept in (0, count))
    if all_ <= at_most:
        return count
    if none > at_most:
        raise ValueError(
            f"decoding at {tokens} tokens moves {none:,} bytes without any softmax layer and {all_:,} with all "
            f"{count}; {at_most:,} are too few for any number of them"
        )
    # Every further layer adds the same.
    return (at_most - none) * count // (all_ - none)
