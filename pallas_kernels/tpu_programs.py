"""What `pallas_kernels.compile` compiles: every TPU kernel at the shapes of real models."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.linear_loss import linear_cross_entropy, linear_kl
from pallas_kernels.norm_rotary import norm_rotary

WIDTH = 128  # of a head
VMEM = 4.0  # MiB that forward passes and decoding may take
ROWS = ((1, 16384, 16, "bfloat16"), (1, 16384, 32, "bfloat16"), (2, 1000, 5, "float32"))  # B T N
CACHES = (
    (1, 524288, 16, 8, "bfloat16"),
    (8, 32768, 32, 8, "bfloat16"),
    (2, 4096, 16, 4, "float32"),
)  # B S N K
HEADS = ((16384, 2048, 151936, 200.0, 2650.0), (1000, 384, 5003, math.inf, math.inf))  # T D V, MiB


@dataclasses.dataclass(frozen=True)
class KernelProgram:
    """One program to compile: an op at one shape.

    Attributes:
      arguments: arrays or `jax.ShapeDtypeStruct`s for `function`.
      vmem_limit: MiB that none of its kernels may exceed.
      temporaries_limit: MiB in HBM, likewise.
    """

    op: str
    shape: str
    mode: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    vmem_limit: float = math.inf
    temporaries_limit: float = math.inf


def programs(op: str) -> Iterator[KernelProgram]:
    """All programs of an op in `PROGRAMS`."""
    make, shapes = PROGRAMS[op]
    for shape in shapes:
        yield from make(*shape)


def _lightning(batch: int, length: int, heads: int, dtype: str) -> Iterator[KernelProgram]:
    """Forward, and with gradients: of one segment, of many segments.

    The arrays come and go with their heads side by side, as projections give and take them.
    """
    tokens = _array(batch, length, heads * WIDTH, dtype=dtype)
    state = _array(batch, heads, WIDTH, WIDTH, dtype="float32")
    segment_ids = _array(batch, length, dtype="int32")
    slopes = np.exp2(-8 * np.arange(1, heads + 1, dtype=np.float32) / heads)
    op = functools.partial(lightning_attention, scale=WIDTH**-0.5, implementation="tpu")

    def forward(q, k, v, state, segment_ids=None):
        q, k, v = (x.reshape(batch, length, heads, WIDTH) for x in (q, k, v))
        out, last = op(q, k, v, -jnp.asarray(slopes), state, segment_ids)
        return out.reshape(tokens.shape), last

    program = functools.partial(
        KernelProgram, "lightning_attention", f"B{batch} T{length} N{heads} H{WIDTH} {dtype}"
    )
    arrays, cotangents = (tokens, tokens, tokens, state), (tokens, state)
    gradient = _gradient(forward, 4)
    yield program("forward", forward, arrays, VMEM)
    yield program("gradient", gradient, (cotangents, *arrays))
    yield program("gradient, segments", gradient, (cotangents, *arrays, segment_ids))


def _norm_rotary(batch: int, length: int, heads: int, dtype: str) -> Iterator[KernelProgram]:
    """Forward, and with gradients; the angles are formed in the program, as models do."""
    tokens = _array(batch, length, heads * WIDTH, dtype=dtype)
    scale, positions = _array(WIDTH, dtype="float32"), _array(batch, length, dtype="int32")
    op = functools.partial(norm_rotary, eps=1e-6, implementation="tpu")
    frequency = jnp.asarray(1e6 ** -np.linspace(0, 1, WIDTH // 2, endpoint=False), jnp.float32)

    def forward(x, scale, positions):
        apart = x.reshape(batch, length, heads, WIDTH)
        angles = positions.astype(jnp.float32)[..., None] * frequency
        return op(apart, scale, angles).reshape(tokens.shape)

    program = functools.partial(
        KernelProgram, "norm_rotary", f"B{batch} T{length} N{heads} H{WIDTH} {dtype}"
    )
    arrays = tokens, scale, positions
    yield program("forward", forward, arrays, VMEM)
    yield program("gradient", _gradient(forward, 2), (tokens, *arrays))


def _decode(
    batch: int, slots: int, heads: int, kv_heads: int, dtype: str
) -> Iterator[KernelProgram]:
    """One token, whose cache and its segment ids are read where they lie."""
    q = _array(batch, heads, WIDTH, dtype=dtype)
    cache = _array(batch, slots, kv_heads, WIDTH, dtype=dtype)
    row, segment_ids = _array(batch, dtype="int32"), _array(batch, slots, dtype="int32")

    def step(q, keys, values, slots, segment_ids=None, key_segment_ids=None):
        segments = {"segment_ids": segment_ids, "key_segment_ids": key_segment_ids}
        options = {"scale": WIDTH**-0.5, "implementation": "tpu"}
        return decode_attention(q, keys, values, slots, **segments, **options)

    shape = f"B{batch} S{slots} N{heads} K{kv_heads} H{WIDTH} {dtype}"
    program = functools.partial(
        KernelProgram, "decode_attention", shape, vmem_limit=VMEM, temporaries_limit=4.0
    )
    arrays = q, cache, cache, row
    yield program("one segment", step, arrays)
    yield program("segments", step, (*arrays, row, segment_ids))


def _linear_loss(
    tokens: int, width: int, vocabulary: int, alone: float, both: float
) -> Iterator[KernelProgram]:
    """Loss alone, whose logits never reach HBM, and with gradients, which hold those of a chunk."""
    hidden, head = _array(tokens, width), _array(vocabulary, width)
    labels, weights = (_array(tokens, dtype=x) for x in ("int32", "float32"))
    shape = f"T{tokens} D{width} V{vocabulary} bfloat16"
    for loss, targets in ((linear_kl, (hidden, head)), (linear_cross_entropy, (labels,))):

        def total(*arrays, loss=loss):
            return loss(*arrays, implementation="tpu")[0]

        program = functools.partial(
            KernelProgram, loss.__name__, shape, arguments=(hidden, head, *targets, weights)
        )
        yield program("forward", total, temporaries_limit=alone)
        yield program("gradient", jax.value_and_grad(total, (0, 1)), temporaries_limit=both)


def _array(*shape: int, dtype: DTypeLike = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _gradient(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The gradients of a function's first `count` arrays, of cotangents and all its arrays."""

    def gradient(cotangents, *arrays):
        first, rest = arrays[:count], arrays[count:]
        return jax.vjp(lambda *first: function(*first, *rest), *first)[1](cotangents)

    return gradient


PROGRAMS: dict[str, tuple[Callable[..., Iterator[KernelProgram]], tuple[Any, ...]]] = {
    "decode_attention": (_decode, CACHES),
    "lightning_attention": (_lightning, ROWS),
    "linear_loss": (_linear_loss, HEADS),
    "norm_rotary": (_norm_rotary, ROWS),
}
