"""Timing: interleaved rounds, errors against float64, and the roofline of this machine's own copy and product."""

import concurrent.futures
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.bench.op import Case, Inputs, Mode

logger = logging.getLogger(__name__)

QUEUED_CALLS = 20  # on an accelerator: dispatch on the host hides behind the calls before
ROUNDS, LEAST_ROUNDS, PATIENCE = 7, 3, 10.0  # seconds
BEYOND_CACHES = 256 << 20  # bytes of inputs that no accelerator's cache holds


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation in one mode. Times are per call, in milliseconds: the median, and the 20th
    and 80th percentile. ratio: over the first implementation. over_roofline: over the time in which
    this machine copies as many bytes, or multiplies as much, as the mode needs at least. errors:
    relative to float64. temporaries: bytes of scratch memory, None where unknown."""

    op: str
    shape: str
    dtype: str
    mode: str
    implementation: str
    milliseconds: float
    low: float
    high: float
    ratio: float
    over_roofline: float
    errors: Mapping[str, float]
    temporaries: int | None


@dataclasses.dataclass(frozen=True)
class Contender:
    """An implementation that is ready to be timed: `sample()` gives milliseconds per call."""

    sample: Callable[[], float]
    errors: Mapping[str, float]
    temporaries: int | None


Rival = Callable[[Case, Mode], Mapping[str, Contender]]
"""Another library: its contenders, by name."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What this machine reaches on a large copy and a large product."""

    bytes_per_second: float
    flops_per_second: Mapping[str, float]


def measure_machine(rounds: int | None) -> Machine:
    """Bandwidth and multiplication rates of this device."""
    words, side = (16 << 20, 1024) if dispatch.platform() == "cpu" else (256 << 20, 8192)
    array = jnp.ones(words, jnp.float32)
    samplers = {"copy": sampler(jax.jit(lambda x: x + 1), [(array,)])}
    for dtype in ("float32", "bfloat16"):
        square = jax.random.normal(jax.random.key(0), (side, side), dtype)
        samplers[dtype] = sampler(jax.jit(jnp.dot), [(square, square)])
    seconds = {name: 1e-3 * min(times) for name, times in interleaved(samplers, rounds).items()}
    copied = 2 * array.nbytes / seconds.pop("copy")
    return Machine(copied, {dtype: 2 * side**3 / best for dtype, best in seconds.items()})


def measure(
    case: Case, machine: Machine, rounds: int | None, rival: Rival | None = None
) -> Iterator[list[Row]]:
    """Mode by mode, the rows of every implementation that runs here, in turns with a rival's."""
    functions = {
        name: functools.partial(case.op.call, implementation=name) for name in case.implementations
    }
    functions = {name: call for name, call in functions.items() if _runs_here(case, call)}
    if not functions:
        return
    sets = _input_sets(case)
    for mode in case.modes:
        runners = {name: mode.runner(call) for name, call in functions.items()}
        ours = _contenders(case, mode, runners, sets)
        contenders = {**(rival(case, mode) if rival else {}), **ours}
        times = interleaved({name: c.sample for name, c in contenders.items()}, rounds)
        copying = _moved(mode, next(iter(runners.values())), sets[0]) / machine.bytes_per_second
        multiplying = mode.flops(*case.shape) / machine.flops_per_second[case.dtype]
        yield _rows(case, mode, contenders, times, 1e3 * max(copying, multiplying))


def _rows(
    case: Case,
    mode: Mode,
    contenders: Mapping[str, Contender],
    times: Mapping[str, list[float]],
    roofline: float,
) -> list[Row]:
    place = case.op.name, case.label, case.dtype, mode.name
    first = float(np.median(next(iter(times.values()))))
    rows = []
    for name, contender in contenders.items():
        low, middle, high = np.quantile(times[name], (0.2, 0.5, 0.8)).tolist()
        numbers = middle, low, high, middle / first, middle / roofline
        rows.append(Row(*place, name, *numbers, contender.errors, contender.temporaries))
    return rows


def interleaved(
    samplers: Mapping[str, Callable[[], float]], rounds: int | None
) -> dict[str, list[float]]:
    """One sample of each in turn, so that whatever else the machine does falls on all of them.

    None is `ROUNDS`, or fewer of slow ones: after `LEAST_ROUNDS`, none begins when `PATIENCE` is
    over.
    """
    times: dict[str, list[float]] = {name: [] for name in samplers}
    start = time.monotonic()
    for done in range(rounds or ROUNDS):
        late = time.monotonic() - start > PATIENCE
        if rounds is None and done >= LEAST_ROUNDS and late:
            break
        for name, sample in samplers.items():
            times[name].append(sample())
    return times


def sampler(function: Callable[..., Any], sets: Sequence[Any]) -> Callable[[], float]:
    """Milliseconds per call of a compiled function that goes round its sets of arguments."""
    calls = 1 if dispatch.platform() == "cpu" else QUEUED_CALLS
    jax.block_until_ready(function(*sets[0]))

    def sample() -> float:
        start = time.perf_counter()
        results = [function(*sets[i % len(sets)]) for i in range(calls)][-1]
        jax.block_until_ready(results)
        return 1e3 * (time.perf_counter() - start) / calls

    return sample


def errors_of(case: Case, mode: Mode, got: Sequence[Any]) -> dict[str, float]:
    """Of each output of a mode on the case's small inputs: the root mean square of the gap to float64,
    over that of the output."""
    errors = {}
    names = mode.outputs + mode.gradients
    for name, x, wanted in zip(names, got, exact(case, mode), strict=True):
        gap = np.asarray(x, np.float64) - wanted
        size = max(np.sqrt(np.mean(wanted**2)), 1e-300)
        errors[name] = float(np.sqrt(np.mean(gap**2)) / size)
    return errors


@functools.lru_cache(1)  # every implementation has them
def small_inputs(case: Case) -> Inputs:
    """Those on which errors are measured."""
    most = case.op.checked
    small = (min(size, most.get(axis, size)) for axis, size in case.sizes.items())
    return case.op.inputs(0, case.dtype, *small)


@functools.lru_cache(1)
def exact(case: Case, mode: Mode) -> list[np.ndarray]:
    """What the definition gives for the small inputs in float64, on the CPU."""
    given, cpu = small_inputs(case), jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        doubles = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), given)
        return [np.asarray(x) for x in jax.jit(mode.runner(case.op.definition))(*doubles)]


def _contenders(
    case: Case, mode: Mode, runners: Mapping[str, Callable[..., Any]], sets: list[Inputs]
) -> dict[str, Contender]:
    """Ready to be timed; an accelerator's compiler works on all programs at once, beside float64."""
    start, small = time.monotonic(), small_inputs(case)
    jobs = [(run, given) for run in runners.values() for given in (small, sets[0])]
    workers = 1 if dispatch.platform() == "cpu" else 1 + len(jobs)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pool.submit(exact, case, mode)
        made = list(pool.map(lambda job: jax.jit(job[0]).lower(*job[1]).compile(), jobs))
    logger.info("%s: compiled in %.1f s", mode.name, time.monotonic() - start)
    contenders = {}
    for name, checked, timed in zip(runners, made[::2], made[1::2], strict=True):
        errors, memory = errors_of(case, mode, checked(*small)), timed.memory_analysis()
        temporaries = None if memory is None else memory.temp_size_in_bytes
        contenders[name] = Contender(sampler(timed, sets), errors, temporaries)
    return contenders


def _input_sets(case: Case) -> list[Inputs]:
    """As many sets of inputs as make every call read from memory."""
    first = case.inputs(0)
    size = sum(x.nbytes for x in jax.tree.leaves(first))
    wanted = 1 if dispatch.platform() == "cpu" else min(8, -(-BEYOND_CACHES // size))
    return [first, *(case.inputs(seed) for seed in range(1, wanted))]


def _moved(mode: Mode, run: Callable[..., Any], inputs: Inputs) -> int:
    """Bytes that have to be moved: inputs and outputs once, and again in the backward pass."""
    moved = [*inputs.arrays, *jax.eval_shape(run, *inputs)]
    if mode.gradients:
        moved += jax.tree.leaves(inputs)
    return sum(x.size * x.dtype.itemsize for x in moved)


def _runs_here(case: Case, call: Callable[..., Any]) -> bool:
    try:
        jax.eval_shape(call, *small_inputs(case).arrays)
    except UnsupportedError as error:
        logger.info("left out: %s", error)
        return False
    return True
