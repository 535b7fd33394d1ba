"""The definition of a projection: norm, gate, products and residual one after the other."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.norm_rotary.reference import rms_norm

Activation = Literal["sigmoid", "silu"]

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu}


class Norm(NamedTuple):
    """An RMS norm over the last axis."""

    scale: Float[Array, "I"]
    eps: float


class Operands(NamedTuple):
    """Arguments of `projection` that are arrays; the same meaning, None included."""

    x: Float[Array, "B T I"]
    kernels: tuple[Float[Array, "I _"], ...]
    scale: Float[Array, "I"] | None
    gate: Float[Array, "B T I"] | None
    residual: Float[Array, "B T O"] | None


def reference(
    operands: Operands, eps: float, activation: Activation
) -> tuple[Float[Array, "B T _"], ...]:
    """Rounds to x's dtype after every step."""
    x, kernels, scale, gate, residual = operands
    x = multiplicand(x, None if scale is None else Norm(scale, eps), gate, activation)
    results = tuple(product(x, kernel.astype(x.dtype)) for kernel in kernels)
    return results if residual is None else tuple(residual + y for y in results)


def multiplicand(
    x: Float[Array, "B T I"],
    norm: Norm | None = None,
    gate: Float[Array, "B T I"] | None = None,
    activation: Activation = "sigmoid",
) -> Float[Array, "B T I"]:
    """norm(x) * activation(gate), what the kernels of a projection multiply; rounds to x's dtype after both."""
    if norm is not None:
        x = rms_norm(x, norm.scale, norm.eps)
    return x if gate is None else x * ACTIVATIONS[activation](gate)


def product(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """y = x W.

    On a CPU of [B*T, I]: XLA computes the weight gradient of a 3-D product 2x slower there. On a mesh that would gather
    a sharded sequence.
    """
    if dispatch.platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
        return jnp.einsum("bti,io->bto", x, kernel)
    return (x.reshape(-1, x.shape[2]) @ kernel).reshape(*x.shape[:2], kernel.shape[1])
