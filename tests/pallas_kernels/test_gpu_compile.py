"""XLA compiles every GPU kernel for an H100 ahead of time, without a GPU; and what norm and rotary move there."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.plan import parse
from pallas_kernels import compile as aot
from pallas_kernels import (
    decode_attention,
    lightning_attention,
    lightning_step,
    norm_rotary,
    projection,
)
from pallas_kernels.lightning_step import HeadNorms
from pallas_kernels.projection import Norm

# JAX 0.11 says at every lowering that Pallas for Triton will go; gpu.py says why it is used.
pytestmark = [
    pytest.mark.aot,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]
LENGTH, HEADS, WIDTH = 16384, 16, 128
CALL = "__gpu$xla.gpu.triton"
NO_WORK = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")


@pytest.fixture(autouse=True)
def compiler_is_installed():
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("the compiler for GPUs is not installed: pip install 'hypenet-jax[cuda]'")


def compiled(function, *arguments, donate=()):
    """The optimized program for one H100."""
    devices = parse("h100:1").devices()
    with jax.set_mesh(jax.sharding.Mesh(np.asarray(devices), ("device",))):
        traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).compile().as_text()


def with_gradients(function):
    def both(cotangents, *arrays):
        out, pull_back = jax.vjp(function, *arrays)
        return out, pull_back(cotangents)

    return both


def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_lightning_attention_compiles_forward_and_backward(dtype):
    tokens = array(1, LENGTH, HEADS, WIDTH, dtype=dtype)
    state = array(1, HEADS, WIDTH, WIDTH, dtype=jnp.float32)
    log_decay = -jnp.exp2(-8 * jnp.arange(1, HEADS + 1) / HEADS)

    def function(q, k, v, state):
        return lightning_attention(q, k, v, log_decay, state, scale=0.1, implementation="gpu")

    text = compiled(with_gradients(function), (tokens, state), *(tokens, tokens, tokens), state)
    assert text.count(CALL) == 6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_decode_attention_compiles(dtype):
    cache = array(1, 65536, 8, WIDTH, dtype=dtype)
    step = functools.partial(decode_attention, scale=0.1, implementation="gpu")
    slots = array(1, dtype=jnp.int32)
    text = compiled(step, array(1, HEADS, WIDTH, dtype=dtype), cache, cache, slots)
    assert text.count(CALL) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_the_projections_of_a_layer_compile_to_one_kernel_each(dtype):
    """What goes into the heads of a mixer, and what comes out of its MLP."""
    one = functools.partial(array, 1, 1, dtype=dtype)
    maps = tuple(array(2048, width, dtype=dtype) for width in (2048, 1024, 1024, 2048))
    down = array(6144, 2048, dtype=dtype)

    def both(x, scale, maps, up, gate, down):
        heads = projection(x, maps, norm=Norm(scale, 1e-6), implementation="gpu")
        options = {"activation": "silu", "residual": x, "implementation": "gpu"}
        return heads, projection(up, (down,), gate=gate, **options)

    text = compiled(both, one(2048), array(2048), maps, one(6144), one(6144), down)
    assert text.count(CALL) == 2
    assert not re.search(r"= \S+ (copy|transpose)\(", text[text.index("ENTRY") :])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=str)
def test_steps_of_lightning_attention_never_copy_a_donated_state(dtype):
    """Eight tokens in a loop, with padding and new segments."""
    heads, scale = array(1, HEADS, WIDTH, dtype=dtype), array(WIDTH, dtype=jnp.float32)
    memory = array(1, HEADS, WIDTH, WIDTH, dtype=jnp.float32)
    angles = array(1, WIDTH // 2, dtype=jnp.float32)

    def write(memory, q, k, v, scale, angles, real):
        norms = HeadNorms(scale, scale, 1e-6)
        options = {"scale": 0.1, "norms": norms, "angles": angles, "real": real, "reset": ~real}
        one = functools.partial(lightning_step, implementation="gpu", **options)
        log_decay = -jnp.exp2(-8 * jnp.arange(1, HEADS + 1) / HEADS)
        step = lambda _, carry: one(carry[0], k, v, log_decay, carry[1])  # noqa: E731
        return jax.lax.fori_loop(0, 8, step, (q, memory))

    arguments = (heads, heads, heads, scale, angles, array(1, dtype=bool))
    text = compiled(write, memory, *arguments, donate=0)
    assert text.count(CALL) == 1
    assert not re.search(r"= \(?f32\[1,16,128,128\]\S* (copy|fusion)\(", text)


def test_norm_and_rotary_move_less_than_half_of_what_xla_makes_of_the_definition():
    """Why None chooses the kernel: forward and gradients of one row."""
    tokens, scale = array(1, LENGTH, HEADS, WIDTH), array(WIDTH, dtype=jnp.float32)
    positions = array(1, LENGTH, dtype=jnp.int32)

    def program(name):
        def both(cotangent, x, scale, positions):
            turns = 1e6 ** -jnp.linspace(0, 1, WIDTH // 2, endpoint=False)
            angles = positions[..., None] * turns[None, None]
            call = functools.partial(norm_rotary, eps=1e-6, implementation=name)
            return with_gradients(lambda x, s: call(x, s, angles))(cotangent, x, scale)

        return compiled(both, tokens, tokens, scale, positions)

    kernels, definition = program("gpu"), program("reference")
    assert kernels.count(CALL) == 2
    # Forward x and the result, backward x, the cotangent and its own result; sines are small.
    assert moved(kernels) <= 1.1 * 5 * (2 * LENGTH * HEADS * WIDTH)
    assert moved(kernels) <= moved(definition) / 2


def moved(text):
    """Bytes of the operands and results of every kernel of a program."""
    sizes, total = {}, 0
    for line in text[text.index("ENTRY") :].splitlines():
        found = re.match(r"\s*(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)", line)
        if found:
            name, shapes, operation, operands = found.groups()
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            sizes[name] = sum(aot._bytes(*one) for one in arrays)
            if operation not in NO_WORK:
                read = re.findall(r"%[\w.\-]+", operands)
                total += sizes[name] + sum(sizes[x] for x in read)
    return total
