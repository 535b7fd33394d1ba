"""Hidden states of long rows, read in parts: what a part needs of the earlier ones is in the decode state."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params, SegmentIds, Tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.model import Model, check_memory
from hypenet_jax.model.decoder import DecodeState, decode_state
from hypenet_jax.sharding import constrain

# Rows up to this length are one pass; longer ones are read in parts of it, so that activations stay bounded.
READ_PART = 4096


def hidden_parts(
    model: EvalModel,
    tokens: Int[np.ndarray, "B T"],
    first: int,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
) -> Iterator[tuple[int, Hidden]]:
    """Hidden states of positions first .. T - 1, in order, in parts of at most READ_PART positions.

    Positions before `first` are read and not handed out; parts of padding alone are skipped. Memory: the activations of
    one part and the decode state of the rows.

    Args:
      segment_ids: 0 for padding; None where there is none.
    Yields:
      Position of the part's first token, and the part's hidden states.
    Raises:
      MemoryError: see `check_memory`.
    """
    length = tokens.shape[1]
    if length <= READ_PART:
        yield first, _whole(model.decoder, model.params, tokens, segment_ids, first)
        return
    check_memory(model.decoder, len(tokens), length)
    single = model.with_single_layers()
    state = _empty(single.decoder, len(tokens), length)
    for start, stop in _spans(length, first):
        part = np.s_[:, start:stop]
        real = None if segment_ids is None else segment_ids[part]
        if real is not None and not real.any():
            continue
        hidden, state = _part(single.decoder, single.params, state, tokens[part], real)
        if start >= first:
            yield start, hidden


def last_hidden(
    model: EvalModel, tokens: Int[np.ndarray, "B T"], count: int
) -> Float[Array, "B W D"]:
    """Hidden states of the last `count` positions."""
    parts = [hidden for _, hidden in hidden_parts(model, tokens, tokens.shape[1] - count)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _spans(length: int, first: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of the parts, so that one starts at `first`."""
    for low, high in ((0, first), (first, length)):
        yield from ((start, min(start + READ_PART, high)) for start in range(low, high, READ_PART))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(decoder: Model, batch: int, capacity: int) -> DecodeState:
    """Compiled, so that it lies where the mesh is and not on this process's first device."""
    return decode_state(decoder.config, batch, capacity, decoder.dtype)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _whole(
    decoder: Model, params: Params, tokens: Tokens, segment_ids: SegmentIds | None, first: int
) -> Float[Array, "B T_last D"]:
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    return decoder.apply({"params": params}, tokens, segment_ids=segment_ids).hidden[:, first:]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _part(
    decoder: Model,
    params: Params,
    state: DecodeState,
    tokens: Tokens,
    segment_ids: SegmentIds | None,
) -> tuple[Hidden, DecodeState]:
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    output = decoder.apply({"params": params}, tokens, segment_ids=segment_ids, state=state)
    return output.hidden, output.state
