"""Time to read a context, time per new token after it, and what is held, by context length.

The models are timed in turns, so that a ratio between them comes from one run under the same
disturbances; both run the programs that `prefill` and `decode` run for anyone.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypenet_jax.chips import CHIPS
from hypenet_jax.evals.efficiency.roofline import PRESENTATIONS as ROOFLINE
from hypenet_jax.evals.efficiency.roofline import roofline_rows
from hypenet_jax.evals.evaluator import Evaluator, Session, check_known, check_positive
from hypenet_jax.evals.model import EvalModel, ModelSource
from hypenet_jax.evals.present.presentation import Presentation, length_text
from hypenet_jax.evals.report import Report, Row
from hypenet_jax.generation.decode import GREEDY, decode, decode_until, init_carry, row_keys
from hypenet_jax.generation.model import Model, check_memory
from hypenet_jax.generation.prefill import PREFILL_PART, Context, prefill_part, start_context
from hypenet_jax.generation.prefill import prefill as read_prompts
from hypenet_jax.model.cost import state_bytes
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state
from hypenet_jax.model.token_layout import CachePosition

_timed = functools.partial(
    Presentation, unit="seconds", section="Speed and memory", better="faster"
)
_held = functools.partial(
    Presentation, unit="bytes", label="bytes", section="Speed and memory", better="smaller"
)
PRESENTATIONS = (
    _timed(
        metric="prefill_seconds",
        title="Prefill: reading the context",
        note="One sequence; medians of runs in turns.",
        label="time",
        ratio="prefill_speedup",
    ),
    _timed(
        metric="decode_seconds",
        title="Decode: time per token",
        note="One sequence, greedy; medians of runs in turns, after a cache filled with random numbers.",
        label="time per token",
        ratio="decode_speedup",
    ),
    _held(
        metric="state_bytes",
        title="State of one sequence",
        note="Key-value caches of softmax layers and states of recurrent ones.",
    ),
    _held(
        metric="prefill_peak_bytes",
        title="Peak memory of prefill",
        note="Weights, state and activations.",
    ),
    _held(
        metric="decode_peak_bytes",
        title="Peak memory of decode",
        note="Weights, state and activations of one token.",
    ),
)

DECODE_STEPS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedEvaluator(Evaluator):
    """Speed and memory of models that are timed in turns.

    Attributes:
      lengths: context lengths; at each a token is written after a full cache.
      longest_prefill: up to here the context is also read; beyond, it would take minutes.
      rounds: runs of each model, in turns.
      chips: whose roofline for the same work is reported too, by the names of `hypenet_jax.chips`.
    """

    lengths: tuple[int, ...] = ()
    longest_prefill: int = 16384
    rounds: int = 5
    chips: tuple[str, ...] = ()

    together: ClassVar[bool] = True
    shown: ClassVar = PRESENTATIONS + ROOFLINE

    def __post_init__(self) -> None:
        check_positive(self, "lengths", "rounds")

    def check(self, models: Sequence[ModelSource]) -> None:
        check_known("chips", self.chips, tuple(CHIPS))

    def compare(self, models: Sequence[EvalModel], session: Session) -> Report:
        report = Report()
        for model, chip in itertools.product(models, self.chips):
            report += roofline_rows(model.name, model.decoder.config, self.lengths, chip)
        for length in self.lengths:
            prefill = length <= self.longest_prefill
            measure = functools.partial(efficiency, models, length, self.rounds, prefill=prefill)
            report += session.keep("speed", measure, length)
        return report

    def summary(self, report: Report) -> Sequence[tuple[str, str]]:
        """How many times faster than the first model another is at the longest length."""
        pairs = []
        for what in ("prefill", "decode"):
            rows = [r for r in report.select(f"{what}_speedup").rows if math.isfinite(r.value)]
            if rows:
                far = max(rows, key=lambda row: row.length or 0)
                name = f"{what} of {far.model} at {length_text(far.length or 0)}"
                pairs.append((name, f"{far.value:.1f}\u00d7 as fast"))
        return pairs


def efficiency(
    models: Sequence[EvalModel], length: int, rounds: int, *, prefill: bool = True
) -> Report:
    """All numbers of this file for these models at this context length, batch 1.

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
    single = [model.with_single_layers() for model in models]
    for model in single:
        check_memory(model.decoder, 1, length)
    report = prefill_times(single, length, rounds=rounds) if prefill else Report()
    report += decode_times(single, length, rounds=rounds)
    return sum((memory_rows(m, length, new_tokens=DECODE_STEPS) for m in single), report)


def memory_rows(model: EvalModel, length: int, *, new_tokens: int) -> Report:
    """Bytes of one row's state, and the most that a device holds while it reads `length` tokens, or writes the last.

    The peaks are parameters, state, results and what the compiler sets aside between them, by its own account.
    """
    decoder, params = model.decoder, model.params
    assert isinstance(decoder, Decoder)
    context = jax.eval_shape(functools.partial(start_context, decoder, 1, length))
    tokens = jax.ShapeDtypeStruct((1, min(length, PREFILL_PART)), jnp.int32)
    start = jax.eval_shape(lambda c: init_carry(c, new_tokens, ()), context)
    keys = jax.eval_shape(lambda: row_keys(None, 1))
    programs = {
        "prefill": prefill_part.lower(decoder, params, context, tokens, None),
        "decode": decode_until.lower(decoder, params, start, keys, new_tokens, GREEDY, ()),
    }
    numbers = {
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(context.state)),
        "state_bytes_formula": state_bytes(decoder.config, length, decoder.dtype),
    }
    for name, program in programs.items():
        held: Any = (
            program.compile().memory_analysis()
        )  # its own peak leaves out temporaries on a CPU
        given = held.argument_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
        numbers[f"{name}_peak_bytes"] = given + held.temp_size_in_bytes
    rows = (Row(metric, model.name, float(n), 1, length) for metric, n in numbers.items())
    return Report(tuple(rows))


def prefill_times(models: Sequence[EvalModel], length: int, *, rounds: int) -> Report:
    """Seconds to read `length` tokens into a state and know the next one."""
    tokens = np.random.default_rng(0).integers(0, 2**15, (1, length)).astype(np.int32)

    def read(model: EvalModel) -> float:
        decoder = _decoder(model)
        context = jax.block_until_ready(start_context(decoder, 1, length))
        some, start = tokens % decoder.config.vocab_size, time.perf_counter()
        jax.block_until_ready(read_prompts(decoder, model.params, context, some))
        return time.perf_counter() - start

    return _timed_in_turns("prefill", models, length, rounds, read)


def decode_times(
    models: Sequence[EvalModel], length: int, *, rounds: int, steps: int = DECODE_STEPS
) -> Report:
    """Seconds per token for the last `steps` greedy tokens of a context of `length`.

    The caches hold random numbers instead of a text that was read: the time does not depend on what
    they hold.
    """
    if length <= steps:
        raise ValueError(
            f"length {length} leaves no context before {steps} steps; use more than {steps}"
        )
    layers = {model.name: random_layers(model.decoder, length) for model in models}

    def write(model: EvalModel) -> float:
        decoder = _decoder(model)
        state = DecodeState(layers[model.name], cursor_at(length, length - steps))
        logits = jnp.zeros((1, decoder.config.vocab_size))
        context = jax.block_until_ready(Context(state, logits))
        start = time.perf_counter()
        after = decode(decoder, model.params, context, max_new_tokens=steps).context
        jax.block_until_ready(after)
        seconds = time.perf_counter() - start
        layers[model.name] = after.state.layers
        return seconds / steps

    return _timed_in_turns("decode", models, length, rounds, write)


def _decoder(model: EvalModel) -> Decoder:
    assert isinstance(model.decoder, Decoder)
    return model.decoder


def _timed_in_turns(
    what: str,
    models: Sequence[EvalModel],
    length: int,
    rounds: int,
    seconds: Callable[[EvalModel], float],
) -> Report:
    for model in models:
        seconds(model)  # compiles
    times = np.asarray([[seconds(model) for model in models] for _ in range(rounds)]).T
    rows = []
    for i, model in enumerate(models):
        for metric, n in ("seconds", times[i]), ("speedup", times[0] / times[i]):
            if i or metric == "seconds":
                low, middle, high = (float(f(n)) for f in (np.min, np.median, np.max))
                rows.append(Row(f"{what}_{metric}", model.name, middle, rounds, length, low, high))
    return Report(tuple(rows))


def random_layers(decoder: Model, length: int) -> Any:
    """The layers of a state of one row, their caches full of random numbers, as after `length` tokens."""
    # Shapes alone: zeros beside the random numbers would double the memory that a length needs.
    state = jax.eval_shape(lambda: decode_state(decoder.config, 1, length, decoder.dtype))
    return optax.tree.random_like(jax.random.key(0), state.layers)


def cursor_at(capacity: int, written: int) -> CachePosition:
    """The cache position of one row that has read `written` tokens of one document."""
    counts = (jnp.full((1,), count, jnp.int32) for count in (written, written, 1, 1))
    slots = (jnp.arange(capacity)[None] < written).astype(jnp.int32)
    return CachePosition(*counts, slot_segment_ids=slots)
