"""Time of a new token after a long context, for published models by name; no checkpoint is needed.

    python -m launch.time_decode qwen3_1p7b hypenet_2b --lengths 262144 524288 [--chip h200] [--out FILE]

Weights and caches are random, which does not change the time. Models are timed in turns, so all of them and their
caches are held together; name one alone where they do not fit. A length that does not fit becomes a row "failed".
"""

import dataclasses
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import tyro

from hypenet_jax import runtime
from hypenet_jax.evals.efficiency.roofline import relative_to_roofline, roofline_rows
from hypenet_jax.evals.efficiency.speed import decode_times
from hypenet_jax.evals.model import EvalModel, random_model
from hypenet_jax.evals.report import Report, failure
from hypenet_jax.model import presets
from launch.errors import CODES

Qwen3 = Literal["qwen3_0p6b", "qwen3_1p7b", "qwen3_4b", "qwen3_8b", "qwen3_14b", "qwen3_32b"]
HypeNet = Literal["hypenet_2b", "hypenet_5b", "hypenet_9b"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    models: tyro.conf.Positional[tuple[Qwen3 | HypeNet, ...]]
    """The first is what the others are compared with."""
    lengths: tuple[int, ...] = (65_536,)
    """Tokens of context."""
    steps: int = 64
    """Tokens written after each context, in one call."""
    rounds: int = 5
    """Medians are taken over these, after one that compiles."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chip: str | None = None
    """Also the least time of this chip by its data sheet, and how many times that was taken: h200, v5e, ..."""
    out: pathlib.Path | None = None
    """JSON lines of the same rows."""


def main(args: Arguments) -> None:
    """Runs the command."""
    if not args.models:
        raise ValueError("no model is named; for instance qwen3_1p7b hypenet_2b")
    dtype, report = jnp.dtype(args.dtype), Report()
    timed = [random_model(name, getattr(presets, name)(), dtype) for name in args.models]
    for length in args.lengths:
        rows = _times(timed, length, args)
        if args.chip is not None:
            for model in timed:
                config = model.decoder.config
                least = roofline_rows(model.name, config, (length,), args.chip, dtype=dtype)
                rows += least.select("decode_seconds_roofline")
        report += rows + relative_to_roofline(rows)
        print(report.select(length=length).table(), flush=True)
        if args.out is not None:
            args.out.write_text(report.to_json_lines())


def _times(timed: list[EvalModel], length: int, args: Arguments) -> Report:
    try:
        return decode_times(timed, length, rounds=args.rounds, steps=args.steps)
    except jax.errors.JaxRuntimeError as error:
        if not runtime.out_of_memory(error):
            raise
        why = str(error).splitlines()[0]
        return Report(tuple(failure(s.name, "decode", why, length) for s in timed))


if __name__ == "__main__":
    with runtime.main_guard(CODES):
        main(tyro.cli(Arguments, description=__doc__))
