"""Norm, product and sum, written as three steps and computed as one kernel where a device has it.

`Layer` reads `x += mixer(norm(x))`. For a token of each row on a GPU these are few numbers and many kernels, so
`RMSNorm.deferred` leaves the norm to the products that read it, and a mixer or MLP that was given such an input leaves
its last product to the sum. Given an array, all of them compute at once.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from hypenet_jax.axes import Hidden
from pallas_kernels import Norm, projection


@dataclasses.dataclass(frozen=True)
class Normed:
    """norm(x), computed by each product that reads it."""

    x: Hidden
    norm: Norm

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclasses.dataclass(frozen=True)
class Product:
    """y W, computed by the sum `residual + product`; `options` are those of `projection`."""

    y: Float[Array, "B T I"]
    kernel: Float[Array, "I D"]
    options: dict[str, Any]

    def __radd__(self, residual: Hidden) -> Hidden:
        return self.compute(residual)

    def compute(self, residual: Hidden | None = None) -> Hidden:
        return projection(self.y, (self.kernel,), residual=residual, **self.options)[0]


def project(
    x: Hidden | Normed, kernels: tuple[Float[Array, "D _"], ...]
) -> tuple[Float[Array, "B T _"], ...]:
    """x W for every kernel W."""
    if isinstance(x, Normed):
        return projection(x.x, kernels, norm=x.norm)
    return projection(x, kernels)


def project_back(
    x: Hidden | Normed, y: Float[Array, "B T I"], kernel: Float[Array, "I D"], **options: Any
) -> Hidden | Product:
    """(norm(y) * activation(gate)) W, back to the residual stream that x was read from.

    Args:
      x: the input of the mixer or MLP; where its norm is deferred, so is this product.
      options: norm, gate and activation of `projection`.
    """
    product = Product(y, kernel, options)
    return product if isinstance(x, Normed) else product.compute()
