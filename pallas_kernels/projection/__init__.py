"""Products of one array with one or several matrices, and what comes right before and after them in a layer."""

from typing import Literal

from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.projection import gpu, reference
from pallas_kernels.projection.reference import Norm as Norm
from pallas_kernels.projection.reference import Operands
from pallas_kernels.projection.reference import multiplicand as multiplicand

Implementation = Literal["reference", "gpu"]

IMPLEMENTATIONS = {"reference": reference.reference, "gpu": gpu.gpu}
KERNELS = {"gpu": gpu.unsupported_reason}


def projection(
    x: Float[Array, "B T I"],
    kernels: tuple[Float[Array, "I _"], ...],
    *,
    norm: Norm | None = None,
    gate: Float[Array, "B T I"] | None = None,
    activation: reference.Activation = "sigmoid",
    residual: Float[Array, "B T O"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T _"], ...]:
    """y_i = (norm(x) * activation(gate)) W_i + residual for every kernel W_i; what is None is left out.

    norm(x) = x / sqrt(mean(x^2) + eps) * scale

    Args:
      x: bfloat16 or float32; products are summed in float32.
      kernels: all of one dtype, rounded to x's where they are used.
      norm: scale and eps of an RMS norm over the last axis, its mean in float32.
      gate: multiplies x element by element, after the norm.
      residual: added to every product.
      implementation: "reference" (anywhere), or "gpu" (A100 or newer): for up to 16 tokens one kernel
        that reads every matrix once, and where it works in parts their sum. None runs "gpu" where it
        can, else "reference".
    Returns:
      One array in x's dtype for every kernel.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
    """
    preferred = dispatch.kernel_here(KERNELS, x) or "reference"
    name = dispatch.choose("projection", implementation, IMPLEMENTATIONS, preferred)
    operands = Operands(x, kernels, norm and norm.scale, gate, residual)
    eps = 0.0 if norm is None else norm.eps
    return IMPLEMENTATIONS[name](operands, eps, activation)
