"""Time to read a context, time per new token after it, and what is remembered, by context length.

The models are timed in turns, so that a ratio between them comes from one run under the same
disturbances.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from hypenet_jax.axes import Params, Tokens
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.evals.subject import Model, Subject
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import DecodeState, decode_state
from hypenet_jax.model.mixers import LightningSpec, MixerSpec, SoftmaxSpec
from hypenet_jax.model.timeline import Cursor

# A longer context is read in parts of this many tokens: activations stay bounded, and real servers
# do so too.
PREFILL_PART = 2048
DECODE_STEPS = 32


def efficiency(
    subjects: Sequence[Subject], lengths: Sequence[int], *, rounds: int, prefill: bool = True
) -> Report:
    """All numbers of this file for these models at these context lengths, batch 1.

    Returns:
      Rows "prefill_seconds", "decode_seconds" (per token), "state_bytes" and "state_bytes_formula";
      for every model but the first also "prefill_speedup" and "decode_speedup", how many times
      faster than the first it is. Times and ratios are medians over the rounds, their low and high
      the extremes.
    """
    single = [subject.with_single_layers() for subject in subjects]
    report = Report()
    for length in lengths:
        if prefill:
            report += prefill_times(single, length, rounds=rounds)
        report += decode_times(single, length, rounds=rounds)
        for subject in single:
            report = report.add(*bytes_rows(subject, length))
    return report


def prefill_times(subjects: Sequence[Subject], length: int, *, rounds: int) -> Report:
    """Seconds to read `length` tokens into a state and know the next one, in parts of at most
    PREFILL_PART tokens.
    """
    part = min(length, PREFILL_PART)
    if length % part:
        raise ValueError(
            f"length {length} is not a multiple of {part}; use {length // part * part}"
        )
    tokens = np.random.default_rng(0).integers(0, 2**15, (1, length)).astype(np.int32)

    def read(subject: Subject) -> float:
        config = subject.decoder.config
        parts = jnp.split(jnp.asarray(tokens % config.vocab_size), length // part, axis=1)
        state = decode_state(config, 1, length, subject.decoder.dtype)
        state = jax.block_until_ready(dataclasses.replace(state, cursor=cursor_at(length, 0)))
        start, token = time.perf_counter(), None
        for some in parts:
            token, state = _advance(subject.decoder, subject.params, state, some)
        jax.block_until_ready((token, state))
        return time.perf_counter() - start

    return _timed_in_turns("prefill", subjects, length, rounds, read)


def decode_times(
    subjects: Sequence[Subject], length: int, *, rounds: int, steps: int = DECODE_STEPS
) -> Report:
    """Seconds per token for the last `steps` greedy tokens of a context of `length`, each fed to
    the next step.

    The caches hold random numbers instead of a text that was read: the time does not depend on what
    they hold.
    """
    if length <= steps:
        raise ValueError(
            f"length {length} leaves no context before {steps} steps; use more than {steps}"
        )
    states = {subject.name: filled_state(subject.decoder, length) for subject in subjects}

    def write(subject: Subject) -> float:
        cursor = cursor_at(length, length - steps)
        state = jax.block_until_ready(dataclasses.replace(states[subject.name], cursor=cursor))
        start, token = time.perf_counter(), jnp.zeros((1, 1), jnp.int32)
        for _ in range(steps):
            token, state = _advance(subject.decoder, subject.params, state, token)
        jax.block_until_ready((token, state))
        states[subject.name] = state
        return (time.perf_counter() - start) / steps

    return _timed_in_turns("decode", subjects, length, rounds, write)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    decoder: Model, params: Params, state: DecodeState, tokens: Tokens
) -> tuple[Int[Array, "B 1"], DecodeState]:
    """Reads tokens; the likeliest next one, and the state in the memory of the one given."""
    out = decoder.apply({"params": params}, tokens, state=state)
    logits = decoder.apply({"params": params}, out.hidden[:, -1:], method="logits")
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), out.state


def _timed_in_turns(
    what: str,
    subjects: Sequence[Subject],
    length: int,
    rounds: int,
    seconds: Callable[[Subject], float],
) -> Report:
    for subject in subjects:
        seconds(subject)  # compiles
    times = np.asarray([[seconds(subject) for subject in subjects] for _ in range(rounds)])
    rows = [_row(f"{what}_seconds", s, times[:, i], length) for i, s in enumerate(subjects)]
    for i, subject in enumerate(subjects[1:], start=1):
        rows.append(_row(f"{what}_speedup", subject, times[:, 0] / times[:, i], length))
    return Report(tuple(rows))


def _row(metric: str, subject: Subject, values: np.ndarray, length: int) -> Row:
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return Row(metric, subject.name, middle, len(values), length, low, high)


def filled_state(decoder: Model, length: int) -> DecodeState:
    """A state of one row whose caches are full of random numbers, as after `length` tokens."""
    state = decode_state(decoder.config, 1, length, decoder.dtype)
    leaves, tree = jax.tree.flatten(state.layers)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    random = [
        jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return DecodeState(jax.tree.unflatten(tree, random), cursor_at(length, length))


def cursor_at(capacity: int, written: int) -> Cursor:
    """The cursor of one row that has read `written` tokens of one document."""
    return Cursor(
        written=jnp.full((1,), written, jnp.int32),
        position=jnp.full((1,), written, jnp.int32),
        segment=jnp.ones((1,), jnp.int32),
        document=jnp.ones((1,), jnp.int32),
        slot_documents=(jnp.arange(capacity)[None] < written).astype(jnp.int32),
    )


def bytes_rows(subject: Subject, length: int) -> tuple[Row, Row]:
    """What one row's state takes at a context of `length`: its arrays added up, and by formula."""
    decoder = subject.decoder
    state = decode_state(decoder.config, 1, length, decoder.dtype)
    measured = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    formula = state_bytes(decoder.config, length, decoder.dtype)
    return (
        Row("state_bytes", subject.name, float(measured), 1, length),
        Row("state_bytes_formula", subject.name, float(formula), 1, length),
    )


def state_bytes(config: ModelConfig, capacity: int, dtype: DTypeLike) -> int:
    """Bytes of one row's state: 2 S K H b per softmax layer, 4 N H H per lightning layer, and 4 (S + 4).

    S is the capacity, b the bytes of a number of `dtype`; the last term is the cursor, shared by all
    layers.
    """
    return sum(_mixer_bytes(spec, capacity, dtype) for spec in config.mixers) + 4 * (capacity + 4)


def _mixer_bytes(spec: MixerSpec, capacity: int, dtype: DTypeLike) -> int:
    match spec:
        case SoftmaxSpec():
            return 2 * capacity * spec.num_kv_heads * spec.head_dim * jnp.dtype(dtype).itemsize
        case LightningSpec():
            return 4 * spec.num_heads * spec.head_dim**2
