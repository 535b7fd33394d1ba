"""Time to read a context, time per new token after it, and what is held, by context length.

The models are timed in turns, so that a ratio between them comes from one run under the same
disturbances; both run the programs that `prefill` and `decode` run for anyone.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.evals.memory import bytes_rows, peak_rows
from hypenet_jax.evals.model import EvalModel, random_like
from hypenet_jax.evals.present.presentation import Presentation
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.generation.decode import decode
from hypenet_jax.generation.model import Model, check_memory
from hypenet_jax.generation.prefill import Context, start_context
from hypenet_jax.generation.prefill import prefill as read_prompts
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state
from hypenet_jax.model.token_layout import CachePosition

_SECTION = "Speed and memory"
PRESENTATIONS = (
    Presentation(
        metric="prefill_seconds",
        title="Prefill: reading the context",
        note="One sequence; medians of runs in turns.",
        unit="seconds",
        label="time",
        section=_SECTION,
        better="faster",
        ratio="prefill_speedup",
    ),
    Presentation(
        metric="decode_seconds",
        title="Decode: time per token",
        note="One sequence, greedy; medians of runs in turns, after a cache filled with random numbers.",
        unit="seconds",
        label="time per token",
        section=_SECTION,
        better="faster",
        ratio="decode_speedup",
    ),
    Presentation(
        metric="state_bytes",
        title="State of one sequence",
        note="Key-value caches of softmax layers and states of recurrent ones.",
        unit="bytes",
        label="bytes",
        section=_SECTION,
        better="smaller",
    ),
    Presentation(
        metric="prefill_peak_bytes",
        title="Peak memory of prefill",
        note="Weights, state and activations.",
        unit="bytes",
        label="bytes",
        section=_SECTION,
        better="smaller",
    ),
    Presentation(
        metric="decode_peak_bytes",
        title="Peak memory of decode",
        note="Weights, state and activations of one token.",
        unit="bytes",
        label="bytes",
        section=_SECTION,
        better="smaller",
    ),
)


DECODE_STEPS = 32


def efficiency(
    subjects: Sequence[EvalModel], lengths: Sequence[int], *, rounds: int, prefill: bool = True
) -> Report:
    """All numbers of this file for these models at these context lengths, batch 1.

    Args:
      prefill: also time how long it takes to read a context; decoding after one needs no reading.
    Returns:
      Rows "prefill_seconds", "decode_seconds" (per token), "prefill_peak_bytes", "decode_peak_bytes",
      "state_bytes" and "state_bytes_formula"; for every model but the first also "prefill_speedup" and
      "decode_speedup", how many times faster than the first it is. Times and ratios are medians over
      the rounds, their low and high the extremes.
    Raises:
      MemoryError: see `check_memory`.
    """
    single = [subject.with_single_layers() for subject in subjects]
    report = Report()
    for length in lengths:
        for subject in single:
            check_memory(subject.decoder, 1, length)
        if prefill:
            report += prefill_times(single, length, rounds=rounds)
        report += decode_times(single, length, rounds=rounds)
        for subject in single:
            report = report.add(*bytes_rows(subject, length))
            report = report.add(*peak_rows(subject, length, new_tokens=DECODE_STEPS))
    return report


def prefill_times(subjects: Sequence[EvalModel], length: int, *, rounds: int) -> Report:
    """Seconds to read `length` tokens into a state and know the next one."""
    tokens = np.random.default_rng(0).integers(0, 2**15, (1, length)).astype(np.int32)

    def read(subject: EvalModel) -> float:
        decoder = _decoder(subject)
        context = jax.block_until_ready(start_context(decoder, 1, length))
        some, start = tokens % decoder.config.vocab_size, time.perf_counter()
        jax.block_until_ready(read_prompts(decoder, subject.params, context, some))
        return time.perf_counter() - start

    return _timed_in_turns("prefill", subjects, length, rounds, read)


def decode_times(
    subjects: Sequence[EvalModel], length: int, *, rounds: int, steps: int = DECODE_STEPS
) -> Report:
    """Seconds per token for the last `steps` greedy tokens of a context of `length`.

    The caches hold random numbers instead of a text that was read: the time does not depend on what
    they hold.
    """
    if length <= steps:
        raise ValueError(
            f"length {length} leaves no context before {steps} steps; use more than {steps}"
        )
    states = {subject.name: filled_state(subject.decoder, length) for subject in subjects}

    def write(subject: EvalModel) -> float:
        decoder = _decoder(subject)
        state = dataclasses.replace(
            states[subject.name], cache_position=cursor_at(length, length - steps)
        )
        logits = jnp.zeros((1, decoder.config.vocab_size))
        context = jax.block_until_ready(Context(state, logits))
        start = time.perf_counter()
        after = decode(decoder, subject.params, context, max_new_tokens=steps).context
        jax.block_until_ready(after)
        seconds = time.perf_counter() - start
        states[subject.name] = after.state
        return seconds / steps

    return _timed_in_turns("decode", subjects, length, rounds, write)


def _decoder(subject: EvalModel) -> Decoder:
    assert isinstance(subject.decoder, Decoder)
    return subject.decoder


def _timed_in_turns(
    what: str,
    subjects: Sequence[EvalModel],
    length: int,
    rounds: int,
    seconds: Callable[[EvalModel], float],
) -> Report:
    for subject in subjects:
        seconds(subject)  # compiles
    times = np.asarray([[seconds(subject) for subject in subjects] for _ in range(rounds)])
    rows = [_row(f"{what}_seconds", s, times[:, i], length) for i, s in enumerate(subjects)]
    for i, subject in enumerate(subjects[1:], start=1):
        rows.append(_row(f"{what}_speedup", subject, times[:, 0] / times[:, i], length))
    return Report(tuple(rows))


def _row(metric: str, subject: EvalModel, values: np.ndarray, length: int) -> Row:
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return Row(metric, subject.name, middle, len(values), length, low, high)


def filled_state(decoder: Model, length: int) -> DecodeState:
    """A state of one row whose caches are full of random numbers, as after `length` tokens."""
    # Shapes alone: zeros beside the random numbers would double the memory that a length needs.
    state = jax.eval_shape(lambda: decode_state(decoder.config, 1, length, decoder.dtype))
    return DecodeState(random_like(state.layers), cursor_at(length, length))


def cursor_at(capacity: int, written: int) -> CachePosition:
    """The cache position of one row that has read `written` tokens of one document."""
    return CachePosition(
        written=jnp.full((1,), written, jnp.int32),
        next_position=jnp.full((1,), written, jnp.int32),
        segment_id=jnp.ones((1,), jnp.int32),
        num_segments=jnp.ones((1,), jnp.int32),
        slot_segment_ids=(jnp.arange(capacity)[None] < written).astype(jnp.int32),
    )
