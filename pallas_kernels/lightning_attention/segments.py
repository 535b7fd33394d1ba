"""Segment ids the way a recurrence reads them: which tokens are real, where segments start, and over how many steps the
state decays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = -1.0  # number of steps over which nothing is left


class Steps(NamedTuple):
    """Steps over which the state decays in every chunk, which are real tokens; NEVER where nothing is left.

    R is B, or 1 where all rows agree; M is the number of chunks, or 1 where all chunks do.
    """

    ordinal: Float[Array, "R M C"]  # real tokens of the chunk up to and with this one
    segment: Float[Array, "R M C"]  # number of the token's segment; NEVER for padding
    entering: Float[Array, "R M C"]  # from the state before the chunk to a token
    leaving: Float[Array, "R M C"]  # from a token to the state after the chunk
    across: Float[Array, "R M 1"]  # from the state before the chunk to the state after it


def steps_of_one_segment(length: int, chunk: int) -> Steps:
    """All chunks are alike, but the last one may be short: the state must not decay past its last token."""
    through = jnp.arange(1, chunk + 1, dtype=jnp.float32)[None, None]
    sizes = jnp.minimum(length - jnp.arange(0, length, chunk, dtype=jnp.float32), float(chunk))
    across = sizes[None, :, None]
    leaving = jnp.maximum(across - through, NEVER)
    return Steps(through, jnp.zeros_like(through), through, leaving, across)


def steps_of_segments(segment_ids: Int[Array, "B T"], chunk: int) -> Steps:
    """Only real tokens count, and nothing crosses the start of a segment."""
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -segment_ids.shape[1] % chunk)))
    shape = (segment_ids.shape[0], -1, chunk)
    real = is_real(segment_ids).reshape(shape)
    count = jnp.cumsum(real, axis=-1, dtype=jnp.float32)
    segment = jnp.cumsum(starts_segment(segment_ids), axis=1, dtype=jnp.float32).reshape(shape)
    end, total = segment[..., -1:], count[..., -1:]
    before = jnp.pad(end[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return Steps(
        count,
        segment=jnp.where(real, segment, NEVER),
        entering=jnp.where(real & (segment == before), count, NEVER),
        leaving=jnp.where(real & (segment == end), total - count, NEVER),
        across=jnp.where(end == before, total, NEVER),
    )


class Ends(NamedTuple):
    """Ids of the first and the last real token of every row; 0 where all is padding."""

    first: Int[Array, "B"]
    last: Int[Array, "B"]


def ends(segment_ids: Int[Array, "B T"]) -> Ends:
    """Those of some tokens."""
    real = is_real(segment_ids)
    places = jnp.argmax(real, axis=1), real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return Ends(*(jnp.take_along_axis(segment_ids, x[:, None], axis=1)[:, 0] for x in places))


def carried(
    state: Float[Array, "B N _ _"], open_id: Int[Array, "B"], next_ends: Ends
) -> tuple[Float[Array, "B N _ _"], Int[Array, "B"]]:
    """What the next tokens start from where a state is of segment `open_id`, and the id that is open after them."""
    first, last = next_ends
    same = (first == open_id) | (first == 0) | (open_id == 0)
    state = jnp.where(same[:, None, None, None], state, 0.0)
    return state, jnp.where(last == 0, open_id, last)


def decay_factor(log_decay: Float[Array, "..."], steps: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(log_decay * steps), 0 for NEVER. Clamped before exp: an overflow masked afterwards is NaN."""
    return jnp.where(steps < 0, 0.0, jnp.exp(log_decay * jnp.maximum(steps, 0.0)))


def is_real(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where a token is not padding."""
    return segment_ids != 0


def starts_segment(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at a real token whose id differs from that of the last real token before it; False at the first one."""
    real = is_real(segment_ids)
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    last = jax.lax.cummax(jnp.where(real, index, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    return real & (before >= 0) & (segment_ids != previous)
