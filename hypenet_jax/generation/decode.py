"""Generation: read the prompts into a state, then one compiled loop writes a token per row until all have ended."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray

from hypenet_jax.axes import Params, Tokens
from hypenet_jax.generation.prefill import (
    Context,
    check_room,
    known_lengths,
    prefill,
    start_context,
)
from hypenet_jax.generation.sampling import GREEDY, Sampling, draw
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.sharding import constrain
from pallas_kernels import platform


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `decode` wrote.

    Attributes:
      tokens: new tokens; after a row's end its (first) stop token, 0 without one.
      lengths: tokens of each row up to its end, a stop token included.
      broken: rows that ended because their logits became NaN.
      context: after those tokens; fillers after the end are not in it.
    """

    tokens: Int[np.ndarray, "B M"]
    lengths: Int[np.ndarray, "B"]
    broken: Bool[np.ndarray, "B"]
    context: Context


# Not checked at construction: tree functions build it of shapes and shardings.
@no_type_check
@flax.struct.dataclass
class Writing:
    """What the loop carries: `step` tokens of every row are `written`, or its end and fillers after it."""

    step: Int[Array, ""]
    context: Context
    done: Bool[Array, "B"]
    broken: Bool[Array, "B"]
    written: Int[Array, "B M"]
    lengths: Int[Array, "B"]


def generate(
    decoder: Decoder,
    params: Params,
    prompts: Tokens | Int[np.ndarray, "B T"],
    *,
    max_new_tokens: int,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
    sampling: Sampling = GREEDY,
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: Callable[[Sequence[np.ndarray]], None] | None = None,
) -> Int[np.ndarray, "B M"]:
    """Continues each prompt by up to `max_new_tokens` tokens: `prefill`, then `decode`.

    Args:
      decoder, params: a model in either grouping of its layers.
      prompts: token ids; rows of different lengths are padded on either side.
      segment_ids: 0 where a prompt is padded; None where none is. Of several documents in a row the last
        is continued; `unpacked` gives each a row of its own.
      sampling, stop_token, key, on_tokens: see `decode`.
    Returns:
      New tokens only.
    Raises:
      ValueError: an empty prompt, nothing to write, token ids outside the vocabulary, or draws without a key.
      FloatingPointError: the model computes NaN.
    """
    _check_writing(max_new_tokens, sampling, key)
    batch, time = prompts.shape
    context = start_context(decoder, batch, time + max_new_tokens)
    context = prefill(decoder, params, context, prompts, segment_ids=segment_ids)
    generation = decode(
        decoder,
        params,
        context,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=stop_token,
        key=key,
        on_tokens=on_tokens,
    )
    refuse_nan(generation)
    return generation.tokens


def decode(
    decoder: Decoder,
    params: Params,
    context: Context,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: Callable[[Sequence[np.ndarray]], None] | None = None,
) -> Generation:
    """Writes up to `max_new_tokens` tokens per row after what `context` holds, which is given away.

    A row whose logits are NaN ends there, and the others go on: see `Generation.broken`.

    Args:
      sampling: greedy by default.
      stop_token: a row ends with it, or with any of several; the row is then filled up with the first.
      key: randomness of the draws; needed unless greedy. One key per row, or one of which row b uses
        fold_in(key, b). A draw depends on its row's key and the tokens before it alone, so neither other
        rows, padding nor a stop and resumption change it.
      on_tokens: called every few tokens with the new ones of each row, none for a row that has ended.
    Raises:
      ValueError: nothing to write, no room for it, an unread context, or draws without a key.
    """
    _check_writing(max_new_tokens, sampling, key)
    lengths = np.asarray(context.state.lengths)
    check_room(lengths + max_new_tokens, context.state.cache_position.slot_segment_ids.shape[1])
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("a row has read no token; prefill its prompt first")
    stops = (stop_token,) if isinstance(stop_token, int) else stop_token or ()
    keys = row_keys(key, len(lengths))
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    now = start_writing(context, max_new_tokens, stops)
    span = max_new_tokens if on_tokens is None else stream_span()
    told = np.zeros_like(lengths)
    for until in range(span, max_new_tokens + span, span):
        now = write_until(decoder, params, now, keys, min(until, max_new_tokens), sampling, stops)
        if on_tokens is not None:
            tokens, ends = np.asarray(now.written), np.asarray(now.lengths)
            on_tokens([row[a:b] for row, a, b in zip(tokens, told, ends, strict=True)])
            told = ends
        if np.asarray(now.done).all():
            break
    written, lengths, broken = map(np.asarray, (now.written, now.lengths, now.broken))
    return Generation(written, lengths, broken, now.context)


def stream_span() -> int:
    """Tokens written between two calls to the host while streaming: one call costs an accelerator as much as several
    tokens, and a CPU less than one."""
    return 4 if platform() == "cpu" else 16


def refuse_nan(generation: Generation) -> None:
    """Raises FloatingPointError where a row ended because its logits became NaN."""
    rows = np.flatnonzero(generation.broken).tolist()
    if rows:
        raise FloatingPointError(f"the model computes NaN logits in rows {rows}")


def row_keys(key: PRNGKeyArray | Key[Array, "B"] | None, batch: int) -> Key[Array, "B"]:
    """One key per row: as given, or of one key fold_in(key, b) for row b."""
    key = jax.random.key(0) if key is None else key
    if key.ndim == 1:
        if len(key) != batch:
            raise ValueError(f"{len(key)} keys for {batch} rows; give one per row, or one for all")
        return key
    return _fold_rows(key, batch)


@functools.partial(jax.jit, static_argnums=1)
def _fold_rows(key: PRNGKeyArray, batch: int) -> Key[Array, "B"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def start_writing(context: Context, count: int, stops: tuple[int, ...]) -> Writing:
    """What the loop starts from, with room for `count` new tokens."""
    nothing = _nothing_written(context.logits.shape[0], count, stops[0] if stops else 0)
    return Writing(context=context, **nothing)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nothing_written(batch: int, count: int, filler: int) -> dict[str, Array]:
    """The small fields of `Writing`: one program, for each call of its own costs more than it computes."""
    done, broken = (jnp.zeros((batch,), bool) for _ in range(2))
    written = jnp.full((batch, count), filler, jnp.int32)
    lengths = jnp.zeros((batch,), jnp.int32)
    return dict(step=jnp.int32(0), done=done, broken=broken, written=written, lengths=lengths)


@functools.partial(jax.jit, static_argnums=(0, 5, 6), donate_argnums=2)
def write_until(
    decoder: Decoder,
    params: Params,
    start: Writing,
    keys: Key[Array, "B"],
    until: Int[Array, ""] | int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Writing:
    """The loop up to step `until`, one program however rows end; the caches given away live on in what comes back."""
    filler = stops[0] if stops else 0

    def going(now: Writing) -> Bool[Array, ""]:
        return (now.step < until) & ~jnp.all(now.done)

    def one(now: Writing) -> Writing:
        logits, state = now.context.logits, now.context.state
        broken = now.broken | (~now.done & jnp.isnan(jnp.max(logits, axis=-1)))
        ended = now.done | broken
        keys_now = jax.vmap(jax.random.fold_in)(keys, state.cache_position.written)
        token = jnp.where(ended, filler, draw(logits, keys_now, sampling))
        # An ended row reads padding, which leaves its state as it was; without stops only NaN ends a row.
        real = jnp.where(ended, 0, state.cache_position.segment_id)[:, None] if stops else None
        output = decoder.apply({"params": params}, token[:, None], segment_ids=real, state=state)
        new = decoder.apply({"params": params}, output.hidden, method="logits")[:, 0]
        stop = jnp.any(token[:, None] == jnp.asarray(stops, jnp.int32)[None], axis=1)
        return Writing(
            step=now.step + 1,
            context=Context(output.state, jnp.where(ended[:, None], logits, new)),
            done=ended | stop,
            broken=broken,
            written=now.written.at[:, now.step].set(token),
            lengths=now.lengths + ~ended,
        )

    end = jax.lax.while_loop(going, one, start)
    return Writing(
        step=end.step,
        context=known_lengths(end.context),
        done=constrain(end.done, (None,)),
        broken=constrain(end.broken, (None,)),
        written=constrain(end.written, (None, None)),
        lengths=constrain(end.lengths, (None,)),
    )


def _check_writing(
    count: int, sampling: Sampling, key: PRNGKeyArray | Key[Array, "B"] | None
) -> None:
    if count < 1:
        raise ValueError(f"max_new_tokens {count} writes nothing; use at least 1")
    if sampling.temperature > 0 and key is None:
        raise ValueError(f"{sampling} draws at random; give a key, or temperature 0")
