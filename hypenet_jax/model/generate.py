"""Generation: read the prompts into a state, then one compiled loop writes a token per row until all have ended."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from hypenet_jax.axes import Params, Tokens
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state
from hypenet_jax.model.stacking import unstack_layers

# Prompts are read in parts of this many tokens, so that activations do not grow with the prompt.
PREFILL_PART = 2048
# Tokens written between two calls to the host while streaming.
STREAM_SPAN = 4


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


# Not checked at construction: tree functions build it with shapes or shardings as leaves.
@typing.no_type_check
@flax.struct.dataclass
class Context:
    """What has been read and written so far: all that is needed to go on, now or from a file.

    Attributes:
      state: of the decoder, after the last token of each row.
      logits: of each row's next token.
    """

    state: DecodeState
    logits: Float[Array, "B V"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `decode` wrote.

    Attributes:
      tokens: new tokens; after a row's end its (first) stop token, 0 without one.
      lengths: tokens of each row up to its end, a stop token included.
      context: after those tokens; fillers after the end are not in it.
    """

    tokens: Int[np.ndarray, "B M"]
    lengths: Int[np.ndarray, "B"]
    context: Context


@typing.no_type_check
@flax.struct.dataclass
class Writing:
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
    sampling: Sampling = Sampling(),
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: Callable[[Sequence[np.ndarray]], None] | None = None,
) -> Int[np.ndarray, "B M"]:
    """Continues each prompt by up to `max_new_tokens` tokens: `prefill`, then `decode`.

    Args:
      decoder, params: a model in either grouping of its layers.
      prompts: token ids; rows of different lengths are padded on either side.
      segment_ids: 0 where a prompt is padded; None where none is.
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
    return decode(
        decoder,
        params,
        context,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=stop_token,
        key=key,
        on_tokens=on_tokens,
    ).tokens


def start_context(decoder: Decoder, batch: int, capacity: int) -> Context:
    """The context before the first token, with room for `capacity` tokens per row, read or written."""
    state = decode_state(decoder.config, batch, capacity, decoder.dtype)
    return Context(state, jnp.zeros((batch, decoder.config.vocab_size), jnp.float32))


def prefill(
    decoder: Decoder,
    params: Params,
    context: Context,
    prompts: Tokens | Int[np.ndarray, "B T"],
    *,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
) -> Context:
    """Reads prompts after what `context` holds; a row of padding alone stays where it was.

    `context` is given away, as its caches are written in place: copy it first to use it twice.

    Raises:
      ValueError: a row would hold no token at all, or more than it has room for; unknown token ids.
    """
    prompts = np.asarray(prompts)
    real = np.ones_like(prompts) if segment_ids is None else (segment_ids != 0).astype(np.int32)
    _check_prompts(decoder, context, prompts, real)
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    for part in range(0, prompts.shape[1], PREFILL_PART):
        span = slice(part, part + PREFILL_PART)
        context = read_part(decoder, params, context, prompts[:, span], real[:, span])
    return context


def decode(
    decoder: Decoder,
    params: Params,
    context: Context,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_token: int | tuple[int, ...] | None = None,
    key: PRNGKeyArray | Key[Array, "B"] | None = None,
    on_tokens: Callable[[Sequence[np.ndarray]], None] | None = None,
) -> Generation:
    """Writes up to `max_new_tokens` tokens per row after what `context` holds, which is given away.

    Args:
      sampling: greedy by default.
      stop_token: a row ends with it, or with any of several; the row is then filled up with the first.
      key: randomness of the draws; needed unless greedy. One key per row, or one of which row b uses
        fold_in(key, b). A draw depends on its row's key and the tokens before it alone, so neither other
        rows, padding nor a stop and resumption change it.
      on_tokens: called every few tokens with the new ones of each row, none for a row that has ended.
    Raises:
      ValueError: nothing to write, no room for it, an unread context, or draws without a key.
      FloatingPointError: the model computes NaN.
    """
    _check_writing(max_new_tokens, sampling, key)
    lengths = np.asarray(context.state.lengths)
    _check_room(context, lengths + max_new_tokens)
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("a row has read no token; prefill its prompt first")
    stops = (stop_token,) if isinstance(stop_token, int) else stop_token or ()
    batch = len(lengths)
    keys = row_keys(key, batch)
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    now = start_writing(context, max_new_tokens, stops)
    span = max_new_tokens if on_tokens is None else STREAM_SPAN
    told = np.zeros((batch,), np.int32)
    for until in range(span, max_new_tokens + span, span):
        now = write_until(decoder, params, now, keys, min(until, max_new_tokens), sampling, stops)
        _refuse_nan(now)
        if on_tokens is not None:
            tokens, ends = np.asarray(now.written), np.asarray(now.lengths)
            on_tokens([row[a:b] for row, a, b in zip(tokens, told, ends, strict=True)])
            told = ends
        if np.asarray(now.done).all():
            break
    return Generation(np.asarray(now.written), np.asarray(now.lengths), now.context)


def row_keys(key: PRNGKeyArray | Key[Array, "B"] | None, batch: int) -> Key[Array, "B"]:
    """One key per row: as given, or of one key fold_in(key, b) for row b."""
    key = jax.random.key(0) if key is None else key
    if key.ndim == 1:
        if len(key) != batch:
            raise ValueError(f"{len(key)} keys for {batch} rows; give one per row, or one for all")
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def read_part(
    decoder: Decoder, params: Params, context: Context, tokens: Tokens, real: Tokens
) -> Context:
    """Reads a part of the prompts; the logits after each row's last real token so far."""
    number = jnp.maximum(context.state.cursor.segment, 1)[:, None]  # goes on with the open document
    output = decoder.apply(
        {"params": params}, tokens, segment_ids=real * number, state=context.state
    )
    last = tokens.shape[1] - 1 - jnp.argmax(real[:, ::-1] != 0, axis=1)
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    new = decoder.apply({"params": params}, hidden, method="logits")[:, 0]
    some = jnp.any(real != 0, axis=1)
    return Context(output.state, jnp.where(some[:, None], new, context.logits))


def start_writing(context: Context, count: int, stops: tuple[int, ...]) -> Writing:
    """What the loop starts from, with room for `count` new tokens."""
    batch = context.logits.shape[0]
    done, broken = (jnp.zeros((batch,), bool) for _ in range(2))
    written = jnp.full((batch, count), stops[0] if stops else 0, jnp.int32)
    return Writing(jnp.int32(0), context, done, broken, written, jnp.zeros((batch,), jnp.int32))


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
    """The loop up to step `until`, and all that it carries: the caches given away live on in what comes back."""
    filler = stops[0] if stops else 0

    def going(now: Writing) -> Bool[Array, ""]:
        return (now.step < until) & ~jnp.all(now.done)

    def one(now: Writing) -> Writing:
        logits, state = now.context.logits, now.context.state
        broken = now.broken | (~now.done & jnp.isnan(jnp.max(logits, axis=-1)))
        keys_now = jax.vmap(jax.random.fold_in)(keys, state.cursor.written)
        token = jnp.where(now.done, filler, draw(logits, keys_now, sampling))
        # An ended row reads padding, which leaves its state as it was; without stops no row ends.
        real = jnp.where(now.done, 0, state.cursor.segment)[:, None] if stops else None
        output = decoder.apply({"params": params}, token[:, None], segment_ids=real, state=state)
        new = decoder.apply({"params": params}, output.hidden, method="logits")[:, 0]
        logits = jnp.where(now.done[:, None], logits, new) if stops else new
        done = now.done
        if stops:
            done = done | jnp.any(token[:, None] == jnp.asarray(stops)[None], axis=1)
        return Writing(
            step=now.step + 1,
            context=Context(output.state, logits),
            done=done,
            broken=broken,
            written=now.written.at[:, now.step].set(token),
            lengths=now.lengths + ~now.done,
        )

    return jax.lax.while_loop(going, one, start)


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


def _check_prompts(
    decoder: Decoder, context: Context, prompts: np.ndarray, real: np.ndarray
) -> None:
    vocabulary = decoder.config.vocab_size
    lengths = np.asarray(context.state.lengths) + np.count_nonzero(real, axis=1)
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError(
            "a prompt is empty; give at least one token, such as the end-of-text token"
        )
    if prompts.size and (prompts.min() < 0 or prompts.max() >= vocabulary):
        raise ValueError(
            f"token ids from {prompts.min()} to {prompts.max()} are not all in the vocabulary of {vocabulary}"
        )
    _check_room(context, lengths)


def _check_room(context: Context, lengths: np.ndarray) -> None:
    capacity = context.state.cursor.slot_documents.shape[1]
    if lengths.max(initial=0) > capacity:
        raise ValueError(
            f"{lengths.max()} tokens do not fit into a state with room for {capacity}; make it larger"
        )


def _check_writing(
    count: int, sampling: Sampling, key: PRNGKeyArray | Key[Array, "B"] | None
) -> None:
    if count < 1:
        raise ValueError(f"max_new_tokens {count} writes nothing; use at least 1")
    if sampling.temperature > 0 and key is None:
        raise ValueError(f"{sampling} draws at random; give a key, or temperature 0")


def _refuse_nan(now: Writing) -> None:
    rows = np.flatnonzero(np.asarray(now.broken))
    if len(rows):
        raise FloatingPointError(f"the model computes NaN logits in rows {rows.tolist()}")
