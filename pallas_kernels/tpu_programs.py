"""What `pallas_kernels.compile` compiles: every TPU kernel at the shapes of real models."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.lightning_attention import tpu as lightning
from pallas_kernels.lightning_attention.reference import Operands
from pallas_kernels.linear_loss import linear_cross_entropy, linear_kl
from pallas_kernels.norm_rotary import norm_rotary


@dataclasses.dataclass(frozen=True)
class KernelProgram:
    """One program to compile: an op at one shape.

    Attributes:
      arguments: arrays or `jax.ShapeDtypeStruct`s for `function`.
      vmem_limit: MiB that none of its kernels may exceed; None sets no bar.
      temporaries_limit: MiB in HBM, likewise.
    """

    op: str
    shape: str
    mode: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    vmem_limit: float | None = None
    temporaries_limit: float | None = None


def _lightning_programs() -> list[KernelProgram]:
    large = [
        program
        for heads in (16, 32)
        for program in _lightning(1, 16384, heads, 128, jnp.bfloat16, vmem_limit=4.0)
    ]
    return large + _lightning(2, 1000, 5, 128, jnp.float32, vmem_limit=4.0)


def _lightning(
    batch: int, length: int, heads: int, width: int, dtype: DTypeLike, vmem_limit: float
) -> list[KernelProgram]:
    """Forward, and with gradients: of one segment, of many segments.

    The arrays come and go with their heads side by side, as projections give and take them.
    """
    tokens = jax.ShapeDtypeStruct((batch, length, heads * width), dtype)
    state = jax.ShapeDtypeStruct((batch, heads, width, width), jnp.float32)
    segment_ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    slopes = np.exp2(-8 * np.arange(1, heads + 1) / heads)

    def forward(q, k, v, state, segment_ids=None):
        q, k, v = (x.reshape(batch, length, heads, width) for x in (q, k, v))
        decay, scale = -jnp.asarray(slopes, jnp.float32), width**-0.5
        operands = Operands(q, k, v, decay, state, segment_ids)
        out, last = lightning.tpu(operands, scale=scale)
        return out.reshape(tokens.shape), last

    def gradient(q, k, v, state, cotangents, segment_ids=None):
        function = functools.partial(forward, segment_ids=segment_ids)
        return jax.vjp(function, q, k, v, state)[1](cotangents)

    shape = f"B{batch} T{length} N{heads} H{width} {jnp.dtype(dtype).name}"
    op, arrays, cotangents = "lightning_attention", (tokens, tokens, tokens, state), (tokens, state)
    return [
        KernelProgram(op, shape, "forward", forward, arrays, vmem_limit),
        KernelProgram(op, shape, "gradient", gradient, (*arrays, cotangents)),
        KernelProgram(
            op, shape, "gradient, segments", gradient, (*arrays, cotangents, segment_ids)
        ),
    ]


def _norm_rotary_programs() -> list[KernelProgram]:
    large = [
        program
        for heads in (16, 32)
        for program in _norm_rotary(1, 16384, heads, 128, jnp.bfloat16)
    ]
    return large + _norm_rotary(2, 1000, 5, 128, jnp.float32)


def _norm_rotary(
    batch: int, length: int, heads: int, width: int, dtype: DTypeLike
) -> list[KernelProgram]:
    """Forward, and with gradients; the angles are formed in the program, as models do."""
    tokens = jax.ShapeDtypeStruct((batch, length, heads * width), dtype)
    scale = jax.ShapeDtypeStruct((width,), jnp.float32)
    positions = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    frequency = jnp.asarray(1e6 ** -np.linspace(0, 1, width // 2, endpoint=False), jnp.float32)

    def forward(x, scale, positions):
        apart = x.reshape(batch, length, heads, width)
        angles = positions.astype(jnp.float32)[..., None] * frequency
        out = norm_rotary(apart, scale, angles, eps=1e-6, implementation="tpu")
        return out.reshape(tokens.shape)

    def gradient(x, scale, positions, cotangent):
        return jax.vjp(lambda x, scale: forward(x, scale, positions), x, scale)[1](cotangent)

    shape = f"B{batch} T{length} N{heads} H{width} {jnp.dtype(dtype).name}"
    arrays = (tokens, scale, positions)
    return [
        KernelProgram("norm_rotary", shape, "forward", forward, arrays, vmem_limit=4.0),
        KernelProgram("norm_rotary", shape, "gradient", gradient, (*arrays, tokens)),
    ]


def _decode_programs() -> list[KernelProgram]:
    shapes = (
        (1, 524288, 16, 8, jnp.bfloat16),
        (8, 32768, 32, 8, jnp.bfloat16),
        (2, 4096, 16, 4, jnp.float32),
    )
    return [program for shape in shapes for program in _decode(*shape)]


def _decode(
    batch: int, capacity: int, heads: int, kv_heads: int, dtype: DTypeLike, width: int = 128
) -> list[KernelProgram]:
    q = jax.ShapeDtypeStruct((batch, heads, width), dtype)
    cache = jax.ShapeDtypeStruct((batch, capacity, kv_heads, width), dtype)
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    segment_ids = jax.ShapeDtypeStruct((batch, capacity), jnp.int32)

    def step(q, keys, values, slots, segment_ids=None, key_segment_ids=None):
        return decode_attention(
            q,
            keys,
            values,
            slots,
            scale=width**-0.5,
            segment_ids=segment_ids,
            key_segment_ids=key_segment_ids,
            implementation="tpu",
        )

    shape = f"B{batch} S{capacity} N{heads} K{kv_heads} H{width} {jnp.dtype(dtype).name}"
    op, arrays = "decode_attention", (q, cache, cache, row)
    limits = 4.0, 4.0  # the cache and its segment ids are read where they lie
    return [
        KernelProgram(op, shape, "one segment", step, arrays, *limits),
        KernelProgram(op, shape, "segments", step, (*arrays, row, segment_ids), *limits),
    ]


def _linear_loss_programs() -> list[KernelProgram]:
    large = _linear_loss(16384, 2048, 151936, limits=(200.0, 2650.0))
    return large + _linear_loss(1000, 384, 5003)


def _linear_loss(
    tokens: int,
    width: int,
    vocabulary: int,
    limits: tuple[float | None, float | None] = (None, None),
) -> list[KernelProgram]:
    """Loss alone, whose logits never reach HBM, and with gradients, which hold those of a chunk."""
    hidden = jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((vocabulary, width), jnp.bfloat16)
    labels, weights = (jax.ShapeDtypeStruct((tokens,), x) for x in (jnp.int32, jnp.float32))

    def kl(*arrays):
        return linear_kl(*arrays, implementation="tpu")[0]

    def cross_entropy(*arrays):
        return linear_cross_entropy(*arrays, implementation="tpu")[0]

    shape = f"T{tokens} D{width} V{vocabulary} bfloat16"
    ops = {
        "linear_kl": (kl, (hidden, head, hidden, head, weights)),
        "linear_cross_entropy": (cross_entropy, (hidden, head, labels, weights)),
    }
    alone, both = limits
    return [
        program
        for op, (loss, arrays) in ops.items()
        for program in (
            KernelProgram(op, shape, "forward", loss, arrays, None, alone),
            KernelProgram(
                op, shape, "gradient", jax.value_and_grad(loss, (0, 1)), arrays, None, both
            ),
        )
    ]


PROGRAMS: dict[str, Callable[[], list[KernelProgram]]] = {
    "decode_attention": _decode_programs,
    "lightning_attention": _lightning_programs,
    "linear_loss": _linear_loss_programs,
    "norm_rotary": _norm_rotary_programs,
}
