"""Generation: read the prompts into a state, then one compiled loop writes a token per row until all have ended."""

import dataclasses
import functools
from typing import Any

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


@flax.struct.dataclass
class _Writing:
    step: Int[Array, ""]
    logits: Float[Array, "B V"]
    state: DecodeState
    done: Bool[Array, "B"]
    written: Int[Array, "B M"]


def generate(
    decoder: Decoder,
    params: Params,
    prompts: Tokens | Int[np.ndarray, "B T"],
    *,
    max_new_tokens: int,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
    sampling: Sampling = Sampling(),
    stop_token: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Int[np.ndarray, "B M"]:
    """Continues each prompt by up to `max_new_tokens` tokens.

    Args:
      decoder, params: a model in either grouping of its layers.
      prompts: token ids; rows of different lengths are padded on either side.
      segment_ids: 0 where a prompt is padded; None where none is.
      sampling: greedy by default.
      stop_token: ends a row; the row is then filled up with it.
      key: randomness of the draws; needed unless greedy. Row b uses fold_in(key, b).
    Returns:
      New tokens only.
    Raises:
      ValueError: an empty prompt, nothing to write, token ids outside the vocabulary, or draws without a key.
    """
    prompts = np.asarray(prompts)
    _check(decoder, prompts, segment_ids, max_new_tokens, sampling, key)
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    batch, time = prompts.shape
    real = np.ones_like(prompts) if segment_ids is None else (segment_ids != 0).astype(np.int32)
    state = decode_state(decoder.config, batch, time + max_new_tokens, decoder.dtype)
    logits = jnp.zeros((batch, decoder.config.vocab_size), jnp.float32)
    for part in range(0, time, PREFILL_PART):
        span = slice(part, part + PREFILL_PART)
        logits, state = _prefill(decoder, params, state, logits, prompts[:, span], real[:, span])
    root = jax.random.key(0) if key is None else key
    rows = jax.vmap(jax.random.fold_in, (None, 0))(root, jnp.arange(batch))
    write = (decoder, params, state, logits, rows, max_new_tokens, sampling, stop_token)
    return np.asarray(_write(*write).written)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _prefill(
    decoder: Decoder,
    params: Params,
    state: DecodeState,
    logits: Float[Array, "B V"],
    tokens: Tokens,
    real: Tokens,
) -> tuple[Float[Array, "B V"], DecodeState]:
    """Reads a part of the prompts; the logits after each row's last real token so far."""
    output = decoder.apply({"params": params}, tokens, segment_ids=real, state=state)
    last = tokens.shape[1] - 1 - jnp.argmax(real[:, ::-1] != 0, axis=1)
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    new = decoder.apply({"params": params}, hidden, method="logits")[:, 0]
    some = jnp.any(real != 0, axis=1)
    return jnp.where(some[:, None], new, logits), output.state


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7), donate_argnums=(2, 3))
def _write(
    decoder: Decoder,
    params: Params,
    state: DecodeState,
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    count: int,
    sampling: Sampling,
    stop_token: int | None,
) -> _Writing:
    """The loop and all that it carries: the caches given away live on only in what comes back."""
    batch = logits.shape[0]
    filler = 0 if stop_token is None else stop_token

    def going(now: _Writing) -> Bool[Array, ""]:
        return (now.step < count) & ~jnp.all(now.done)

    def one(now: _Writing) -> _Writing:
        keys_now = jax.vmap(jax.random.fold_in, (0, None))(keys, now.step)
        token = jnp.where(now.done, filler, draw(now.logits, keys_now, sampling))
        done = now.done if stop_token is None else now.done | (token == stop_token)
        output = decoder.apply({"params": params}, token[:, None], state=now.state)
        logits = decoder.apply({"params": params}, output.hidden, method="logits")[:, 0]
        written = now.written.at[:, now.step].set(token)
        return _Writing(now.step + 1, logits, output.state, done, written)

    written = jnp.full((batch, count), filler, jnp.int32)
    start = _Writing(jnp.int32(0), logits, state, jnp.zeros((batch,), bool), written)
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


def _check(
    decoder: Decoder, prompts: np.ndarray, segment_ids: Any, count: int, sampling: Any, key: Any
) -> None:
    vocabulary = decoder.config.vocab_size
    lengths = [prompts.shape[1]] if segment_ids is None else np.count_nonzero(segment_ids, axis=1)
    if prompts.shape[0] == 0 or min(lengths) == 0:
        raise ValueError(
            "a prompt is empty; give at least one token, such as the end-of-text token"
        )
    if count < 1:
        raise ValueError(f"max_new_tokens {count} writes nothing; use at least 1")
    if prompts.min() < 0 or prompts.max() >= vocabulary:
        raise ValueError(
            f"token ids from {prompts.min()} to {prompts.max()} are not all in the vocabulary of {vocabulary}"
        )
    if sampling.temperature > 0 and key is None:
        raise ValueError(f"{sampling} draws at random; give a key, or temperature 0")
