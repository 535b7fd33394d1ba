"""Least squares of a layer's output projections in closed form: sums over tokens on the mesh, one solve on the host.

A projection reads features f_t and should write r_t; w_t weighs tokens, and padding has none. With
A = sum_t w_t f_t^T f_t, B = sum_t w_t f_t^T r_t and a = ridge * mean(diag(A)), the kernel is

    W0 + (A + a 1)^-1 (B - A W0) = argmin_W sum_t w_t |r_t - f_t W|^2 + a |W - W0|^2

Each device adds up its own tokens and its own columns of f; the devices' sums are added once per projection.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal, cast, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from hypenet_jax import axes, runtime
from hypenet_jax.axes import Hidden, Weights
from hypenet_jax.sharding import mesh_axes, replicated
from hypenet_jax.train.errors import NumericsError
from pallas_kernels import AxisNames, num_shards, on_each_device

Features = Float[Array, "B T I"]
Kernel = Float[Array, "*I D"]
Around = Literal["kernel", "zero"]


# Not checked at construction: tree functions and specs of shards build it too.
@no_type_check
@flax.struct.dataclass
class TokenSums:
    """A, B, sum_t w_t |r_t|^2 and the number of tokens, float32; those of every part P of the tokens by themselves."""

    gram: Float[Array, "P I I"]
    products: Float[Array, "P I D"]
    power: Float[Array, "P"]
    tokens: Float[Array, "P"]


def token_sums(features: Features, targets: Hidden, weights: Weights) -> TokenSums:
    """The sums of a batch, on every device those of its own tokens."""
    rows, time = mesh_axes(axes.BATCH, len(weights)), mesh_axes(axes.TIME, weights.shape[1])
    columns = mesh_axes(axes.MLP, features.shape[2])  # heads are sharded alike
    tokens, parts = PartitionSpec(rows, time), PartitionSpec(rows + time)
    specs = (PartitionSpec(rows, time, columns), tokens, tokens)
    matrices = PartitionSpec(rows + time, columns)
    sums = cast(Any, TokenSums)(matrices, matrices, parts, parts)
    add = on_each_device(functools.partial(_own_sums, columns), specs, sums)
    return add(features, targets, weights)


def _own_sums(
    columns: AxisNames, features: Features, targets: Hidden, weights: Weights
) -> TokenSums:
    # Sums of bfloat16 products lose the small directions, which the solve divides by.
    flat = lambda x: x.astype(jnp.float32).reshape(-1, *x.shape[2:])  # noqa: E731
    features, targets, weights = flat(features), flat(targets), flat(weights)
    whole = features
    if num_shards(columns) > 1:
        whole = jax.lax.all_gather(features, columns, axis=1, tiled=True)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    weighted = (features * weights[:, None]).T
    power = jnp.sum(weights * jnp.sum(jnp.square(targets), axis=-1))
    tokens = jnp.sum(weights > 0, dtype=jnp.float32)
    parts = product(weighted, whole), product(weighted, targets), power, tokens
    return TokenSums(*(part[None] for part in parts))


@functools.partial(jax.jit, donate_argnums=0)
def _add(sums: TokenSums, more: TokenSums) -> TokenSums:
    return jax.tree.map(jnp.add, sums, more)


@functools.partial(jax.jit, static_argnames="mesh")
def _whole(sums: TokenSums, kernel: Kernel, mesh: Mesh) -> tuple[TokenSums, Kernel]:
    """The sums over all parts, and the kernel, on every device."""
    both = jax.tree.map(lambda part: jnp.sum(part, axis=0), sums), kernel
    return jax.lax.with_sharding_constraint(both, replicated(mesh))


def relative_weights(stream: Hidden, real: Weights) -> Weights:
    """1 / mean(h^2) of real tokens, whose readers are RMS norms; without it a few massive tokens decide everything."""
    size = jnp.mean(jnp.square(stream.astype(jnp.float32)), axis=-1)
    return real / (size + jnp.finfo(jnp.float32).tiny)


def fit_kernel(
    batches: Iterable[TokenSums],
    kernel: Kernel,
    *,
    mesh: Mesh,
    layer: int,
    sublayer: str,
    ridge: float,
    around: Around,
) -> tuple[Kernel, dict[str, float]]:
    """The output projection of a sublayer that fits the sums of these batches, sharded as the given one.

    Args:
      kernel: the one so far.
      ridge: of the formula above.
      around: what W0 is, towards which little text pulls.
    Returns:
      The kernel; and "layer", "tokens", "SUBLAYER/before" and "SUBLAYER/after", the relative error
      sum_t w_t |r_t - f_t W|^2 / sum_t w_t |r_t|^2 of the kernel so far and of this one.
    Raises:
      NumericsError: sums that are not finite, or a singular matrix.
    """
    found = jax.device_get(_whole(functools.reduce(_add, batches), kernel, mesh))
    sums, before = cast(Any, found)
    outcome: Solution | NumericsError | None = None
    if jax.process_index() == 0:  # hosts with other processors would round otherwise
        name = f"layer {layer}, output projection of its {sublayer}"
        outcome = _attempt(sums, before, ridge, around, name)
    outcome = runtime.broadcast(outcome)
    if isinstance(outcome, NumericsError):
        raise outcome
    assert outcome is not None
    solved = outcome.kernel.reshape(kernel.shape)
    placed = jax.make_array_from_callback(solved.shape, kernel.sharding, solved.__getitem__)
    errors = {f"{sublayer}/before": outcome.before, f"{sublayer}/after": outcome.after}
    return placed, {"layer": float(layer), "tokens": outcome.tokens, **errors}


@dataclasses.dataclass(frozen=True)
class Solution:
    """A solved kernel, float32, its relative error and that of the kernel before it."""

    kernel: Float[np.ndarray, "I D"]
    before: float
    after: float
    tokens: float


def _attempt(
    sums: TokenSums,
    kernel: Float[np.ndarray, "*I D"],
    ridge: float,
    around: Around,
    name: str,
) -> Solution | NumericsError:
    """The solve in float64: float32 would lose what little a strong ridge leaves of the small directions."""
    wide = jax.tree.map(lambda part: np.asarray(part, np.float64), sums)
    gram, products, power = wide.gram, wide.products, float(wide.power)
    before = np.asarray(kernel, np.float64).reshape(products.shape)
    if not (np.isfinite(gram).all() and np.isfinite(products).all() and np.isfinite(power)):
        return NumericsError(f"{name}: sums over its tokens are not finite; inspect its weights")
    scale = np.trace(gram) / len(gram)
    start = before if around == "kernel" else np.zeros_like(before)
    try:
        regular = gram + ridge * scale * np.eye(len(gram))
        pivots = np.square(np.diagonal(np.linalg.cholesky(regular)))
        if pivots.min() <= np.finfo(np.float32).eps * scale:  # below what the sums resolve
            raise np.linalg.LinAlgError
        solved = start + np.linalg.solve(regular, products - gram @ start)
    except np.linalg.LinAlgError:
        return NumericsError(
            f"{name}: the matrix of its {len(gram)} features is singular with ridge {ridge:g}; "
            "use a larger ridge, or more batches"
        )

    def error(kernel: Float[np.ndarray, "I D"]) -> float:
        fitted = 2 * np.sum(products * kernel) - np.sum(kernel * (gram @ kernel))
        return float((power - fitted) / max(power, np.finfo(np.float64).tiny))

    return Solution(solved.astype(np.float32), error(before), error(solved), float(wide.tokens))
