"""Lightning attention: q and k RMS-normed, and the slopes of HypeNet."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels import lightning_attention
from pallas_kernels.bench import float64, inputs
from pallas_kernels.bench.measure import Case, Inputs, Mode
from pallas_kernels.lightning_attention import IMPLEMENTATIONS

# B T N H. A row of the 2B model, two, one of the larger models, a training batch, a long context.
SHAPES = ((1, 16384, 16, 128), (2, 16384, 16, 128), (1, 16384, 32, 128))
SHAPES = (*SHAPES, (12, 512, 16, 128), (1, 131072, 16, 128))
# The quickstart's layer, the shape of the CPU bars, and a row of the 2B model.
SHAPES_ON_CPU = ((16, 128, 4, 32), (1, 4096, 8, 64), (1, 2048, 16, 128))
ONE_PASS = "gpu_one_pass"  # `gpu` with precision="one_pass"
CHUNK = 64  # of the products that the definition needs at least


def cases() -> list[Case]:
    """Every shape and dtype to time, whole rows and one part of a row."""
    shapes = SHAPES_ON_CPU if inputs.on_cpu() else SHAPES
    names = {dtype: _names(dtype) for dtype in inputs.dtypes()}
    whole_rows = [case(dtype, shape, names[dtype]) for shape in shapes for dtype in names]
    return whole_rows + [part_of_a_row(dtype, shapes[0], names[dtype]) for dtype in names]


def cpu_bar() -> list[Case]:
    """On a CPU the token scan takes at least 8 times as long as the chunks, the tree at most
    twice."""
    whole = case("float32", SHAPES_ON_CPU[1], ("chunked", "recurrent", "associative"))
    return [dataclasses.replace(whole, modes=whole.modes[-1:])]


def _names(dtype):
    names = inputs.worth_timing(IMPLEMENTATIONS)
    return (*names, ONE_PASS) if dtype == "bfloat16" else names


def case(dtype: str, shape: tuple[int, int, int, int], names: tuple[str, ...]) -> Case:
    """One shape in one dtype, with these implementations."""
    batch, length, heads, width = shape
    log_decay, scale = _slopes(heads), width**-0.5

    def with_state(name):
        return functools.partial(_attend, log_decay=log_decay, scale=scale, implementation=name)

    def make_inputs(seed, batch=batch, length=length):
        q, k, v, d_out = inputs.random(seed, dtype, *4 * ((batch, length, heads, width),))
        return Inputs((inputs.normed(q), inputs.normed(k), v), d_out)

    @functools.cache
    def small():
        return make_inputs(0, 1, min(length, inputs.CHECKED_TOKENS))

    tokens = float(batch * length * heads * width)
    forward, gradient = tokens * 4 * (CHUNK + width), tokens * (14 * CHUNK + 12 * width)
    modes = (
        Mode("forward", lambda name: _only_outputs(with_state(name)), ("o",), forward),
        Mode("forward+state", with_state, ("o", "state"), forward),
        Mode(
            "forward+gradient",
            lambda name: _only_outputs(with_state(name)),
            ("o", "dq", "dk", "dv"),
            gradient,
            gradient=True,
        ),
    )
    label = f"B{batch} T{length} N{heads} H{width}"
    zeros = np.zeros((2, 1, heads, width, width))
    exact = _exact(lambda: _between(small(), *zeros), log_decay, scale)
    place = "lightning_attention", label, dtype
    return Case(*place, names, modes, make_inputs, small, exact)


def part_of_a_row(dtype: str, shape: tuple[int, int, int, int], names: tuple[str, ...]) -> Case:
    """From a first memory to the last, with gradients through both."""
    whole = case(dtype, shape, names)
    heads, width = shape[2:]
    log_decay, scale = _slopes(heads), width**-0.5

    def between(given, seed):
        memory = given.arrays[0].shape[0], heads, width, width
        return _between(given, *inputs.random(seed, "float32", memory, memory))

    _, with_state, gradient = whole.modes
    outputs = ("o", "state", "dq", "dk", "dv", "dstate")
    mode = Mode("state+gradient", with_state.function, outputs, gradient.flops, gradient=True)

    @functools.cache
    def small():
        return between(whole.small(), 0)

    return dataclasses.replace(
        whole,
        modes=(mode,),
        make_inputs=lambda seed: between(whole.make_inputs(seed), seed),
        small=small,
        exact=_exact(small, log_decay, scale),
    )


def _slopes(heads):
    return -np.exp2(-8 * np.arange(1, heads + 1, dtype=np.float32) / heads)


def _between(given, first, d_last):
    """The same tokens after a first memory, with a cotangent of the last one."""
    return Inputs((*given.arrays, first), (given.cotangent, d_last))


def _attend(q, k, v, state=None, *, log_decay, scale, implementation):
    one_pass = implementation == ONE_PASS
    return lightning_attention(
        *(q, k, v, jnp.asarray(log_decay), state),
        scale=scale,
        implementation="gpu" if one_pass else implementation,
        precision="one_pass" if one_pass else "split",
    )


def _only_outputs(function):
    return lambda *arrays: function(*arrays)[0]


def _exact(small, log_decay, scale):
    @functools.cache
    def results():
        arrays, cotangents = ([np.asarray(x[0]) for x in xs] for xs in small())
        return float64.lightning(arrays, cotangents, log_decay, scale)

    def exact(mode):
        out, state, gradients = results()
        last = (state,) if "state" in mode else ()
        wanted = {"forward+gradient": gradients[:3], "state+gradient": gradients}
        return [x[None] for x in (out, *last, *wanted.get(mode, ()))]

    return exact
