"""Timing: cases, interleaved rounds, and the roofline that this machine's own copy and product set."""

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import UnsupportedError, dispatch
from pallas_kernels.bench import float64

logger = logging.getLogger(__name__)

QUEUED_CALLS = 20  # on an accelerator: dispatch on the host hides behind the calls before
ROUNDS, LEAST_ROUNDS, PATIENCE = 7, 3, 10.0  # seconds
BEYOND_CACHES = 256 << 20  # bytes of inputs that no accelerator's cache holds


class Inputs(NamedTuple):
    """Arrays of one call of an op."""

    arrays: tuple[jax.Array, ...]
    cotangent: Any  # of the outputs that are differentiated: an array, or a tuple of them


@dataclasses.dataclass(frozen=True)
class Mode:
    """What of an op is timed: `function(implementation)` takes the arrays of an `Inputs`.

    A gradient mode returns the outputs and the gradients of all arrays. flops: the least that the
    definition needs. outputs: their names, gradients included.
    """

    name: str
    function: Callable[[str], Callable[..., Any]]
    outputs: tuple[str, ...]
    flops: float
    gradient: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape. `exact(mode name)` gives the outputs in float64 for the inputs `small`:
    the same shape, but short."""

    op: str
    shape: str
    dtype: str
    implementations: tuple[str, ...]
    modes: tuple[Mode, ...]
    make_inputs: Callable[[int], Inputs]  # of a seed
    small: Callable[[], Inputs]  # made once, when it is needed
    exact: Callable[[str], list[np.ndarray]]


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


@runtime_checkable
class Rival(Protocol):
    """Another library: `begin` lets it compile, beside ours, and `contender` waits for it."""

    def begin(self, case: Case, mode: Mode) -> None: ...

    def contender(self, case: Case, mode: Mode) -> Contender: ...


@dataclasses.dataclass(frozen=True)
class Machine:
    """What this machine reaches on a large copy and a large product."""

    bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def roofline(self, mode: Mode, dtype: str, moved: int) -> float:
        """Milliseconds below which nothing can be expected."""
        return 1e3 * max(moved / self.bytes_per_second, mode.flops / self.flops_per_second[dtype])


def measure_machine(rounds: int | None) -> Machine:
    """Bandwidth and multiplication rates of this device."""
    small = dispatch.platform() == "cpu"
    words, side = (16 << 20, 1024) if small else (256 << 20, 8192)
    array = jnp.ones(words, jnp.float32)
    jobs: dict[str, Any] = {"copy": (lambda x: x + 1, array)}
    for dtype in ("float32", "bfloat16"):
        square = jax.random.normal(jax.random.key(0), (side, side), dtype)
        jobs[dtype] = jnp.dot, square, square
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda job: sampler(jax.jit(job[0]), [job[1:]]), jobs.values())
        samplers = dict(zip(jobs, made, strict=True))
    times = interleaved(samplers, rounds)
    best = {name: 1e-3 * min(values) for name, values in times.items()}
    speeds = {name: 2 * side**3 / best[name] for name in ("float32", "bfloat16")}
    return Machine(2 * array.nbytes / best["copy"], speeds)


def measure(
    case: Case, machine: Machine, rounds: int | None, rivals: Mapping[str, Rival] | None = None
) -> Iterator[list[Row]]:
    """Mode by mode, the rows of every implementation that runs here, in turns with `rivals`."""
    rivals = rivals or {}
    names = [name for name in case.implementations if _runs_here(case, name)]
    if not names:
        return
    sets = _input_sets(case)
    for mode in case.modes:
        for rival in rivals.values():
            rival.begin(case, mode)
        start = time.monotonic()
        ours = _contenders(case, mode, names, sets)
        logger.info("%s: compiled in %.1f s", mode.name, time.monotonic() - start)
        contenders = {n: rival.contender(case, mode) for n, rival in rivals.items()} | ours
        times = interleaved({n: c.sample for n, c in contenders.items()}, rounds)
        roofline = machine.roofline(mode, case.dtype, _moved(mode, names[0], sets[0]))
        yield [_row(case, mode, name, times, contenders[name], roofline) for name in contenders]


def _row(
    case: Case,
    mode: Mode,
    name: str,
    times: Mapping[str, list[float]],
    contender: Contender,
    roofline: float,
) -> Row:
    low, middle, high = np.quantile(times[name], (0.2, 0.5, 0.8)).tolist()
    first = float(np.median(next(iter(times.values()))))
    place = case.op, case.shape, case.dtype, mode.name, name
    ratios = middle / first, middle / roofline
    return Row(*place, middle, low, high, *ratios, contender.errors, contender.temporaries)


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


def sampler(function: Callable[..., Any], sets: list[Any]) -> Callable[[], float]:
    """Milliseconds per call of a compiled function that goes round its sets of arguments."""
    calls = 1 if dispatch.platform() == "cpu" else QUEUED_CALLS
    jax.block_until_ready(function(*sets[0]))

    def sample() -> float:
        start = time.perf_counter()
        results = [function(*sets[i % len(sets)]) for i in range(calls)][-1]
        jax.block_until_ready(results)
        return 1e3 * (time.perf_counter() - start) / calls

    return sample


def errors_of(case: Case, mode: Mode, got: Any) -> dict[str, float]:
    """Relative error of each output of a mode on the case's small inputs."""
    leaves, exact = jax.tree.leaves(got), case.exact(mode.name)
    triples = zip(mode.outputs, leaves, exact, strict=True)
    return {name: float64.relative_error(x, y) for name, x, y in triples}


def _contenders(
    case: Case, mode: Mode, names: list[str], sets: list[Inputs]
) -> dict[str, Contender]:
    """Ready to be timed; an accelerator's compiler works on all programs at once, beside float64."""
    jobs = [(name, given) for name in names for given in (case.small(), sets[0])]
    workers = 1 if dispatch.platform() == "cpu" else 1 + len(jobs)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pool.submit(case.exact, mode.name)
        made = list(pool.map(lambda job: _compiled(mode, *job), jobs))
    each = zip(names, made[::2], made[1::2], strict=True)
    return {name: _contender(case, mode, small, whole, sets) for name, small, whole in each}


def _compiled(mode: Mode, name: str, given: Inputs) -> Any:
    return jax.jit(_runner(mode, name)).lower(*given).compile()


def _contender(case: Case, mode: Mode, small: Any, timed: Any, sets: list[Inputs]) -> Contender:
    analysis = timed.memory_analysis()
    temporaries = None if analysis is None else analysis.temp_size_in_bytes
    errors = errors_of(case, mode, small(*case.small()))
    return Contender(sampler(timed, sets), errors, temporaries)


def _runner(mode: Mode, name: str) -> Callable[..., Any]:
    function = mode.function(name)

    def run(arrays, cotangent):
        if not mode.gradient:
            return function(*arrays)
        out, pull_back = jax.vjp(function, *arrays)
        return out, pull_back(cotangent)

    return run


def _input_sets(case: Case) -> list[Inputs]:
    """As many sets of inputs as make every call read from memory."""
    first = case.make_inputs(0)
    size = sum(x.nbytes for x in jax.tree.leaves(first))
    wanted = 1 if dispatch.platform() == "cpu" else min(8, -(-BEYOND_CACHES // size))
    return [first, *(case.make_inputs(seed) for seed in range(1, wanted))]


def _moved(mode: Mode, name: str, inputs: Inputs) -> int:
    """Bytes that have to be moved: inputs and outputs once, and again in the backward pass."""
    outputs = jax.eval_shape(_runner(mode, name), *inputs)
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves((inputs.arrays, outputs))]
    return sum(sizes) + (sum(x.nbytes for x in jax.tree.leaves(inputs)) if mode.gradient else 0)


def _runs_here(case: Case, name: str) -> bool:
    try:
        jax.eval_shape(_runner(case.modes[0], name), *case.small())
    except UnsupportedError as error:
        logger.info("left out: %s", error)
        return False
    return True
