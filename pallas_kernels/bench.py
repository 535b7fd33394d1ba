"""Times every implementation of an op on this machine:  python -m pallas_kernels.bench [OP]
[--json FILE]

Rounds are interleaved, one call of each implementation after the other, so that whatever else the
machine does
falls on all of them; the table prints medians, and each time over that of the first implementation.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import (
    UnsupportedError,
    attention,
    lightning_attention,
    linear_cross_entropy,
    linear_kl,
)
from pallas_kernels import linear_loss as losses
from pallas_kernels.attention import IMPLEMENTATIONS as ATTENTION
from pallas_kernels.lightning_attention import IMPLEMENTATIONS as LIGHTNING

logger = logging.getLogger(__name__)

# B T N H: the quickstart's layer, the shape of the CPU bar, and a layer of the 2B model.
LIGHTNING_SHAPES = ((16, 128, 4, 32), (1, 4096, 8, 64), (1, 2048, 16, 128))
# B T S N K H: the quickstart's layer, a prefill, and one token of decode against a cache.
ATTENTION_SHAPES = ((32, 128, 128, 4, 2, 32), (1, 2048, 2048, 4, 2, 32), (1, 1, 8192, 4, 2, 32))
# T D V: the quickstart's head, and one of a large vocabulary.
LOSS_SHAPES = ((4096, 128, 4096), (256, 512, 32768))


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape: `make(implementation)` gives the function that is timed on `arrays`."""

    op: str
    shape: str
    implementations: tuple[str, ...]
    make: Callable[[str], Callable[..., Any]]
    arrays: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Median milliseconds of one implementation, and over those of the first one."""

    op: str
    shape: str
    mode: str
    implementation: str
    milliseconds: float
    ratio: float


def main() -> None:
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="?", choices=sorted(CASES), help="all ops where it is left out")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ops = [arguments.op] if arguments.op else list(CASES)
    rows = []
    for make_case, shapes in (CASES[op] for op in ops):
        for shape in shapes:
            rows += measure(make_case(*shape), arguments.rounds)
    logger.info("%s\n%s", jax.devices()[0].device_kind, table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))


def measure(case: Case, rounds: int) -> list[Row]:
    """Forward, and forward with gradients, of every implementation that runs here."""
    rows, names = [], [name for name in case.implementations if _runs_here(case, name)]
    for mode, wrap in (("forward", jax.jit), ("forward+gradient", _with_gradient)):
        functions = {name: wrap(case.make(name)) for name in names}
        for function in functions.values():
            jax.block_until_ready(function(*case.arrays))
        times = _interleaved(functions, case.arrays, rounds)
        first = next(iter(times.values()))
        rows += [Row(case.op, case.shape, mode, n, t, t / first) for n, t in times.items()]
    return rows


def table(rows: list[Row]) -> str:
    """One line per row, in columns."""
    head = ("op", "shape", "mode", "implementation", "ms", "ratio")
    cells = [head] + [
        (r.op, r.shape, r.mode, r.implementation, f"{r.milliseconds:.3f}", f"{r.ratio:.2f}")
        for r in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in cells)
    return "\n".join("  ".join(line) for line in lines)


def _runs_here(case: Case, name: str) -> bool:
    try:
        jax.eval_shape(case.make(name), *case.arrays)
    except UnsupportedError as error:
        logger.info("left out: %s", error)
        return False
    return True


def _interleaved(
    functions: dict[str, Callable[..., Any]], arrays: tuple[jax.Array, ...], rounds: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arrays):
        out, pull_back = jax.vjp(function, *arrays)
        return out, pull_back(jax.tree.map(jnp.ones_like, out))

    return jax.jit(run)


def _random(*shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def _lightning(batch: int, length: int, heads: int, width: int) -> Case:
    log_decay = -jnp.exp2(-8 * jnp.arange(1, heads + 1) / heads)

    def make(name):
        return lambda q, k, v, state: lightning_attention(
            q, k, v, log_decay, state, scale=width**-0.5, implementation=name
        )

    tokens, state = (batch, length, heads, width), (batch, heads, width, width)
    shape = f"B{batch} T{length} N{heads} H{width}"
    arrays = _random(tokens, tokens, tokens, state)
    return Case("lightning_attention", shape, tuple(LIGHTNING), make, arrays)


def _attention(batch: int, length: int, keys: int, heads: int, kv_heads: int, width: int) -> Case:
    slots = None if length == keys else jnp.full((batch, length), keys - 1, jnp.int32)

    def make(name):
        return lambda q, k, v: attention(
            q, k, v, scale=width**-0.5, query_slots=slots, implementation=name
        )

    q, kv = (batch, length, heads, width), (batch, keys, kv_heads, width)
    shape = f"B{batch} T{length} S{keys} N{heads} K{kv_heads} H{width}"
    return Case("attention", shape, tuple(ATTENTION), make, _random(q, kv, kv))


def _cross_entropy(tokens: int, width: int, vocabulary: int) -> Case:
    labels, weights = jnp.arange(tokens) % vocabulary, jnp.ones(tokens)

    def make(name):
        return lambda hidden, head: linear_cross_entropy(
            hidden, head, labels, weights, implementation=name
        )[0]

    shape = f"T{tokens} D{width} V{vocabulary}"
    arrays = _random((tokens, width), (vocabulary, width))
    return Case("linear_cross_entropy", shape, tuple(losses.CROSS_ENTROPY), make, arrays)


def _kl(tokens: int, width: int, vocabulary: int) -> Case:
    weights = jnp.ones(tokens)

    def make(name):
        # The teacher is an argument: as a constant, the compiler would spend minutes folding it.
        return lambda hidden, head, teacher, teacher_head: linear_kl(
            hidden, head, teacher, teacher_head, weights, implementation=name
        )[0]

    shapes = (tokens, width), (vocabulary, width)
    shape = f"T{tokens} D{width} V{vocabulary}"
    return Case("linear_kl", shape, tuple(losses.KL), make, _random(*shapes, *shapes))


CASES: dict[str, tuple[Callable[..., Case], tuple[tuple[int, ...], ...]]] = {
    "lightning_attention": (_lightning, LIGHTNING_SHAPES),
    "attention": (_attention, ATTENTION_SHAPES),
    "linear_cross_entropy": (_cross_entropy, LOSS_SHAPES),
    "linear_kl": (_kl, LOSS_SHAPES),
}


if __name__ == "__main__":
    main()
