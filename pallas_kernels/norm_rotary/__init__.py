"""RMS norm of every head, then rotary positions: what queries and keys go through before
attention."""

import functools
from typing import Literal

import jax
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.mesh import UNSHARDED, MeshAxes, on_each_device
from pallas_kernels.norm_rotary import gpu, permuted, reference, tpu
from pallas_kernels.norm_rotary.reference import Operands
from pallas_kernels.norm_rotary.reference import rms_norm as rms_norm
from pallas_kernels.norm_rotary.reference import rotate as rotate

Implementation = Literal["reference", "permuted", "tpu", "gpu"]

IMPLEMENTATIONS = {
    "reference": reference.reference,
    "permuted": permuted.permuted,
    "tpu": tpu.tpu,
    "gpu": gpu.gpu,
}
KERNELS = {"gpu": gpu.unsupported_reason, "tpu": tpu.unsupported_reason}


def norm_rotary(
    x: Float[Array, "B T N H"],
    scale: Float[Array, "H"],
    angles: Float[Array, "B T J"],
    *,
    eps: float,
    mesh_axes: MeshAxes = UNSHARDED,
    implementation: Implementation | None = None,
) -> Float[Array, "B T N H"]:
    """RMS norm over the last axis, then a rotation of dimension j with j + H/2 by the angle of j.

    y = x / sqrt(mean(x^2) + eps) * scale
    o = (y1 cos - y2 sin, y2 cos + y1 sin),  y1 and y2 the halves of y

    The mean, sine and cosine are taken in float32. Gradients flow to x and scale; angles are
    constants.

    Args:
      angles: radians, float32, J = H / 2 frequencies of every token, the same for all heads.
      eps: added to the mean of squares.
      mesh_axes: batch, sequence and heads; nothing is exchanged but the gradient of scale.
      implementation: "reference", "permuted" (half-turns as products: fewer bytes on TPU than
        slices), both anywhere, "tpu" or "gpu" (A100 or newer; one kernel that reads x once and
        writes o once). None runs "reference" for one token, the kernel of this device where it can,
        else "permuted" on TPU and "reference" elsewhere.
    Returns:
      An array like x.
    Raises:
      UnsupportedError: the named implementation cannot run these arguments or this device, and why.
      ValueError: the angles are not half as many as the width.
    Source: arXiv 1910.07467 (RMS norm); arXiv 2104.09864 (rotary embedding).
    """
    if 2 * angles.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"norm_rotary has {angles.shape[-1]} angles for heads of {x.shape[-1]}; give half the"
            " width"
        )
    tokens = mesh_axes.spec("B T N")
    specs = Operands(tokens, mesh_axes.spec("H"), mesh_axes.spec("B T"))
    local = functools.partial(_apply, eps=eps, implementation=implementation)
    operands = Operands(x, scale, jax.lax.stop_gradient(angles))
    return on_each_device(local, (specs,), tokens)(operands)


def _apply(
    operands: Operands, *, eps: float, implementation: str | None
) -> Float[Array, "B T N H"]:
    name = dispatch.choose("norm_rotary", implementation, IMPLEMENTATIONS, _preferred(operands.x))
    return IMPLEMENTATIONS[name](operands, eps=eps)


def _preferred(x: Float[Array, "B T N H"]) -> str:
    if x.shape[1] == 1:
        return "reference"
    elsewhere = "permuted" if dispatch.platform() == "tpu" else "reference"
    return dispatch.kernel_here(KERNELS, x) or elsewhere
