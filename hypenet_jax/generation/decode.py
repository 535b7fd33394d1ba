"""Decoding: one compiled loop writes a token per row until every row has ended."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from hypenet_jax import axes
from hypenet_jax.axes import Params
from hypenet_jax.explicit_axes import left_to_compiler
from hypenet_jax.generation.prefill import Context, check_capacity, replicated_lengths
from hypenet_jax.model.decoder import Decoder, activation_axes
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.sharding import constrain
from pallas_kernels import platform

OnTokens: TypeAlias = Callable[[Sequence[np.ndarray]], bool | None]
"""Takes the new tokens of each row, none for a row that has ended; True ends decoding."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; None among all.
      top_p: draw among the fewest tokens that hold this much probability; 1 among all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        some = self.top_k is None or self.top_k >= 1
        if self.temperature < 0 or not 0 < self.top_p <= 1 or not some:
            raise ValueError(f"{self}: temperature >= 0, top_k >= 1 and 0 < top_p <= 1 are needed")


GREEDY = Sampling()


# Not checked at construction: tree functions build it of shapes and shardings.
@no_type_check
@flax.struct.dataclass
class Generation:
    """What is written so far: the carry of the loop, and what `decode` returns.

    Attributes:
      step: tokens written per row, fillers included.
      context: after those tokens, without the fillers.
      done: rows that have ended.
      broken: rows that ended because their logits became NaN.
      tokens: new tokens; after a row's end its (first) stop token, 0 without one.
      lengths: tokens of each row up to its end, a stop token included.
    """

    step: Int[Array, ""]
    context: Context
    done: Bool[Array, "B"]
    broken: Bool[Array, "B"]
    tokens: Int[Array, "B M"]
    lengths: Int[Array, "B"]


def decode(
    decoder: Decoder,
    params: Params,
    context: Context,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: OnTokens | None = None,
) -> Generation:
    """Writes up to `max_new_tokens` tokens per row after what `context` holds, which is donated.

    A row whose logits are NaN ends there, and the others go on: see `Generation.broken`.

    Args:
      stop_token: a row ends with it, or with any of several; the row is then filled up with the first.
      key: randomness of the draws; needed unless greedy. One per row, or one of which row b uses fold_in(key, b). A
        draw depends on its row's key and the tokens before it alone: not on other rows, padding, or where one resumed.
      on_tokens: called every few tokens with the new ones of each row; decoding ends when it returns True.
    Raises:
      ValueError: nothing to write, no capacity for it, an empty context, or draws without a key.
    """
    check_decoding(max_new_tokens, sampling, key)
    lengths = np.asarray(context.state.lengths)
    check_capacity(lengths + max_new_tokens, context.state.cache_position.capacity)
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("a row has read no token; prefill its prompt first")
    stops = (stop_token,) if isinstance(stop_token, int) else stop_token or ()
    keys = row_keys(key, len(lengths))
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    carry = init_carry(context, max_new_tokens, stops)
    span = max_new_tokens if on_tokens is None else stream_span()
    streamed = np.zeros_like(lengths)
    for limit in (*range(span, max_new_tokens, span), max_new_tokens):
        carry = decode_until(decoder, params, carry, keys, limit, sampling, stops)
        ended = bool(np.asarray(carry.done).all())
        if on_tokens is not None:
            tokens, ends = np.asarray(carry.tokens), np.asarray(carry.lengths)
            new = [row[a:b] for row, a, b in zip(tokens, streamed, ends, strict=True)]
            ended = on_tokens(new) is True or ended
            streamed = ends
        if ended:
            break
    return carry


def stream_span() -> int:
    """Tokens written between two calls to the host: one costs an accelerator several tokens, a CPU less than one."""
    return 4 if platform() == "cpu" else 16


def row_keys(key: PRNGKeyArray | Key[Array, "B"] | None, batch: int) -> Key[Array, "B"]:
    """One key per row: as given, or of one key fold_in(key, b) for row b."""
    key = jax.random.key(0) if key is None else key
    if key.ndim == 0:
        return fold_rows(key, np.arange(batch))
    if len(key) != batch:
        raise ValueError(f"{len(key)} keys for {batch} rows; give one per row, or one for all")
    return key


@jax.jit
def fold_rows(key: PRNGKeyArray, numbers: Int[Array | np.ndarray, "B"]) -> Key[Array, "B"]:
    """fold_in(key, number) for the number of each row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def init_carry(context: Context, count: int, stops: tuple[int, ...]) -> Generation:
    """The carry before the first of `count` new tokens."""
    empty = _empty_carry(context.state.lengths, count, stops[0] if stops else 0)
    return dataclasses.replace(empty, context=context)


@functools.partial(jax.jit, static_argnums=(1, 2))
@left_to_compiler(lambda *_: (axes.BATCH,))
def _empty_carry(read: Int[Array, "B"], count: int, filler: int) -> Generation:
    """All but the context, from one program: each call of its own costs more than it computes.

    It is made of what the context has `read`, to lie where that does: the loop is then compiled once, for its own
    results too, with which streaming goes on.
    """
    batch, done = len(read), read < 0
    broken, lengths = jnp.zeros_like(done), jnp.zeros_like(read)
    tokens = jnp.full((batch, count), filler, jnp.int32)
    return Generation(jnp.int32(0), cast(Any, None), done, broken, tokens, lengths)


@functools.partial(jax.jit, static_argnums=(0, 5, 6), donate_argnums=2)
@left_to_compiler(activation_axes)
def decode_until(
    decoder: Decoder,
    params: Params,
    start: Generation,
    keys: Key[Array, "B"],
    limit: Int[Array, ""] | int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Generation:
    """The loop up to step `limit`, one program however rows end; the donated caches are updated in place."""
    filler = stops[0] if stops else 0

    def unfinished(carry: Generation) -> Bool[Array, ""]:
        return (carry.step < limit) & ~jnp.all(carry.done)

    def step(carry: Generation) -> Generation:
        logits, state = carry.context.logits, carry.context.state
        broken = carry.broken | (~carry.done & jnp.isnan(jnp.max(logits, axis=-1)))
        ended = carry.done | broken
        step_keys = jax.vmap(jax.random.fold_in)(keys, state.cache_position.written)
        token = jnp.where(ended, filler, draw(logits, step_keys, sampling))
        # An ended row reads padding, which leaves its state as it was; without stops only NaN ends a row.
        real = jnp.where(ended, 0, state.cache_position.segment_id)[:, None] if stops else None
        output = decoder.apply({"params": params}, token[:, None], segment_ids=real, state=state)
        new = decoder.apply({"params": params}, output.hidden, method="logits")[:, 0]
        stop = jnp.any(token[:, None] == jnp.asarray(stops, jnp.int32)[None], axis=1)
        return Generation(
            step=carry.step + 1,
            context=Context(output.state, jnp.where(ended[:, None], logits, new)),
            done=ended | stop,
            broken=broken,
            tokens=carry.tokens.at[:, carry.step].set(token),
            lengths=carry.lengths + ~ended,
        )

    end = jax.lax.while_loop(unfinished, step, start)
    small = dataclasses.replace(end, context=None)
    small = jax.tree.map(lambda leaf: constrain(leaf, (None,) * leaf.ndim), small)
    return dataclasses.replace(small, context=replicated_lengths(end.context))


def check_decoding(count: int, sampling: Sampling = GREEDY, key: Any = None) -> None:
    """Raises ValueError: nothing to write, or draws without a key."""
    if count < 1:
        raise ValueError(f"max_new_tokens {count} writes nothing; use at least 1")
    if sampling.temperature > 0 and key is None:
        raise ValueError(f"{sampling} draws at random; give a key, or temperature 0")


def draw(logits: Float[Array, "B V"], keys: Key[Array, "B"], sampling: Sampling) -> Int[Array, "B"]:
    """One token per row from its logits, each row with a key of its own."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        logits = jnp.where(_outside(logits, sampling.top_p), -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _outside(logits: Float[Array, "B V"], mass: float) -> Bool[Array, "B V"]:
    """Tokens outside the fewest likeliest ones that hold `mass`; the likeliest is never outside."""
    order = jnp.argsort(-logits, axis=-1)
    ranked = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    return jnp.take_along_axis(before >= mass, jnp.argsort(order, axis=-1), axis=-1)
