"""The plain parts of a layer: linear maps, RMS norm, gated MLP, embedding, and how they start.

`Layer` reads `x += mixer(norm(x))`. For a token of each row on a GPU norm, product and sum are few numbers and many
kernels, so `RMSNorm.deferred` leaves the norm to the products that read it, and a mixer or MLP that was given such an
input leaves its last product to the sum. Given an array, all of them compute at once.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Tokens
from hypenet_jax.sharding import constrain, mesh_axes
from pallas_kernels import (
    AxisNames,
    Norm,
    multiplicand,
    num_shards,
    on_each_device,
    platform,
    projection,
    rms_norm,
)


@dataclasses.dataclass(frozen=True)
class Initialization:
    """How the parameters of a model trained from scratch start; a converted model only uses it for its new gates.

    Attributes:
      std: standard deviation of every linear map; Qwen3 uses 0.02.
      embedding_std: the same for the embedding.
      output_gain: factor on `std` for the maps that write to the residual stream.
      query_norm: start of the queries' norm weight; above 1 it sharpens attention from the first step.
    """

    std: float = 0.02
    embedding_std: float = 0.02
    output_gain: float = 1.0
    query_norm: float = 1.0


def unroll_layers() -> bool:
    """Whether a scan over layers is unrolled: a loop costs a CPU more than the compile time that it saves."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def parameter(
    module: nn.Module, name: str, start: Any, shape: tuple[int, ...], names: tuple[str, ...]
) -> Float[Array, "..."]:
    """A float32 parameter of a module whose axes carry these logical names."""
    named = nn.with_logical_partitioning(start, names)
    # Linen hands over the array itself; its annotation speaks of the box that carries the names.
    return cast(jax.Array, module.param(name, named, shape, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Normed:
    """norm(x), computed by each product that reads it."""

    x: Hidden
    norm: Norm


@dataclasses.dataclass(frozen=True)
class Product:
    """f W, computed by the sum `residual + product`; `options` are those of `projection`, which makes f of y."""

    y: Float[Array, "B T I"]
    kernel: Float[Array, "I D"]
    options: dict[str, Any]

    def __radd__(self, residual: Hidden) -> Hidden:
        return self.compute(residual)

    def features(self) -> Float[Array, "B T I"]:
        """What the kernel multiplies: y with the norm and the gate of the options."""
        return multiplicand(self.y, **self.options)

    def compute(self, residual: Hidden | None = None) -> Hidden:
        return projection(self.y, (self.kernel,), residual=residual, **self.options)[0]


def project(
    x: Hidden | Normed, kernels: tuple[Float[Array, "D _"], ...]
) -> tuple[Float[Array, "B T _"], ...]:
    """x W for every kernel W."""
    x, norm = (x.x, x.norm) if isinstance(x, Normed) else (x, None)
    return projection(x, kernels, norm=norm)


def project_back(
    x: Hidden | Normed, y: Float[Array, "B T I"], kernel: Float[Array, "I D"], **options: Any
) -> Hidden | Product:
    """(norm(y) * activation(gate)) W, back to the residual stream; options are those of `projection`.

    x is the input of the mixer or MLP: where its norm is deferred, so is this product.
    """
    product = Product(y, kernel, options)
    return product if isinstance(x, Normed) else product.compute()


class Linear(nn.Module):
    """The kernel of a linear map between groups of axes, y[..., out] = sum_in x[..., in] W[in, out] + bias[out].

    Attributes:
      shape, names: of the kernel, and the logical name of each of its axes; inputs first.
      std: standard deviation of the initial weights.
      num_inputs: how many leading axes are inputs.
      use_bias: whether it has a bias, which starts at zero; who computes the product adds it.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    std: float
    num_inputs: int = 1
    use_bias: bool = False

    def setup(self) -> None:
        start, outputs = nn.initializers.normal(self.std), slice(self.num_inputs, None)
        self.kernel = parameter(self, "kernel", start, self.shape, self.names)
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            self.bias = parameter(self, "bias", zeros, self.shape[outputs], self.names[outputs])

    def matrix(self) -> Float[Array, "I O"]:
        """The kernel as it is stored, its inputs as one axis and its outputs as another, for `projection`."""
        inputs, outputs = self.shape[: self.num_inputs], self.shape[self.num_inputs :]
        return self.kernel.reshape(math.prod(inputs), math.prod(outputs))


class RMSNorm(nn.Module):
    """`rms_norm` over the last axis; over several jointly only `before_product`.

    Attributes:
      shape, names: of the scale, and the logical name of each of its axes.
      eps: added to the mean of squares.
      start: initial value of the scale.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    eps: float
    start: float = 1.0

    def setup(self) -> None:
        start = nn.initializers.constant(self.start)
        self.scale = parameter(self, "scale", start, self.shape, self.names)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_norm(x, self.scale, self.eps)

    def deferred(self, x: Float[Array, "B T D"]) -> Normed:
        """The same, computed by the products that read it."""
        return Normed(x, self.before_product())

    def before_product(self) -> Norm:
        """The same norm for `projection`, the scale's axes as one."""
        return Norm(self.scale.reshape(-1), self.eps)


class GatedMLP(nn.Module):
    """y = W_down (silu(W_gate x) * W_up x).  Source: arXiv 2002.05202 (SwiGLU)."""

    d_model: int
    d_mlp: int
    start: Initialization

    @nn.compact
    def __call__(self, x: Hidden | Normed) -> Hidden | Product:
        std, names = self.start.std, (axes.EMBED, axes.MLP)
        wide = functools.partial(Linear, (self.d_model, self.d_mlp), names, std)
        gate, up = project(x, (wide(name="gate").matrix(), wide(name="up").matrix()))
        std *= self.start.output_gain
        down = Linear((self.d_mlp, self.d_model), names[::-1], std, name="down").matrix()
        return project_back(x, up, down, gate=gate, activation="silu")


class Embedding(nn.Module):
    """One row of width D per token; the same table is the output head where heads are tied."""

    vocab_size: int
    d_model: int
    std: float
    dtype: DTypeLike

    def setup(self) -> None:
        shape, names = (self.vocab_size, self.d_model), (axes.VOCAB, axes.EMBED)
        start = nn.initializers.normal(self.std)
        self.embedding = parameter(self, "embedding", start, shape, names)

    def __call__(self, tokens: Tokens) -> Hidden:
        x = look_up(self.embedding, tokens, self.dtype)
        return constrain(x, (axes.BATCH, axes.TIME, axes.HIDDEN))


def look_up(table: Float[Array, "V D"], tokens: Tokens, dtype: DTypeLike) -> Hidden:
    """Row tokens[b, t] of a table that may be cut over a mesh, in `dtype`.

    Each device reads its part of the width from its own rows, for all tokens of the devices that share the width, and
    zeros stand for the rows of others until the sum: neither the table nor its dense gradient is ever gathered.
    """
    vocabulary, width = mesh_axes(axes.VOCAB, len(table)), mesh_axes(axes.EMBED, table.shape[1])
    batch = tuple(a for a in mesh_axes(axes.BATCH, len(tokens)) if a not in width)
    time = mesh_axes(axes.TIME, tokens.shape[1])
    specs = PartitionSpec(vocabulary, width), PartitionSpec(batch, time)
    local = functools.partial(_own_rows, vocabulary, dtype)
    return on_each_device(local, specs, PartitionSpec(batch, time, width))(table, tokens)


def _own_rows(
    vocabulary: AxisNames, dtype: DTypeLike, table: Float[Array, "V D"], tokens: Tokens
) -> Hidden:
    if num_shards(vocabulary) == 1:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    rows = tokens - jax.lax.axis_index(vocabulary) * len(table)
    here = (rows >= 0) & (rows < len(table))
    x = jnp.where(here[..., None], jnp.take(table, jnp.where(here, rows, 0), axis=0), 0)
    # XLA on CPU cannot compile this sum of bfloat16 numbers; all but one are zeros.
    return jax.lax.psum(x.astype(jnp.float32), vocabulary).astype(dtype)
