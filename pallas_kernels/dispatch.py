"""Which implementation of an op runs here: None may choose, a name runs that one or fails.

The platform is asked of the mesh set by `jax.set_mesh`, not of the process: a CPU machine that
compiles for a TPU slice must plan the TPU's kernels.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import jax

logger = logging.getLogger(__name__)

# Kinds of NVIDIA GPUs by the shared memory that a block of threads may have.
HOPPER = ("H100", "H200", "H800", "H20", "B200", "B300")  # 227 KiB
AMPERE = ("A100", "A800", *HOPPER)  # 163 KiB

LANES = 128  # columns of a TPU's tiles

# Part of what `jax.jit` caches by: a function traced inside and outside is traced twice.
_interpreting = jax.make_user_context(False)


class UnsupportedError(ValueError):
    """A named implementation does not exist, or cannot run these arguments on this device."""


def platform() -> str:
    """The platform that compiled programs will run on: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Inside, Pallas kernels run on any platform, each step on the host: to test their numbers.

    Only a kernel asked for by its name runs this way; what None chooses stays as it is.
    """
    with _interpreting(True):
        yield


def interprets() -> bool:
    """Whether Pallas kernels are interpreted here: the `interpret` of every `pallas_call`."""
    return _interpreting.value


def platform_unsupported_reason(target: Literal["gpu", "tpu"]) -> str | None:
    """Why a Pallas kernel made for `target` cannot run here; None where it can or is
    interpreted."""
    here = platform()
    if here == target or interprets():
        return None
    return f"needs a {target.upper()}, and this runs on {here}"


def gpu_unsupported_reason(kinds: Collection[str]) -> str | None:
    """Why a Pallas kernel made for these kinds of GPU cannot run here; None where it can or is
    interpreted."""
    reason = platform_unsupported_reason("gpu")
    if reason is not None or interprets():
        return reason
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if not any(kind in device.device_kind for kind in kinds):
        return f"needs a GPU of {', '.join(kinds)}, and this is {device.device_kind}"
    return mesh_unsupported_reason()


def tpu_unsupported_reason(width: int) -> str | None:
    """Why a Pallas kernel for TPUs cannot run here on heads of this width; None where it can or is
    interpreted."""
    reason = platform_unsupported_reason("tpu")
    if reason is not None or interprets():
        return reason
    if width % LANES:
        return f"needs a head width that is a multiple of {LANES}, and it is {width}"
    return mesh_unsupported_reason()


def mesh_unsupported_reason() -> str | None:
    """Why a kernel that the compiler cannot cut up cannot run on this mesh; None where it can.

    Inside `jax.shard_map` over all axes of a mesh each device runs the kernel on its own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = [kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types]
    if all(manual) or (not any(manual) and math.prod(mesh.axis_sizes) == 1):
        return None
    return "is not cut up by the compiler, and the mesh has several devices"


def choose(op: str, implementation: str | None, names: Collection[str], preferred: str) -> str:
    """The name that runs: the one asked for, or `preferred` where none was asked for.

    Args:
      op: name of the op, for the log and the error.
      implementation: None chooses; a name is checked and kept.
      names: every implementation of the op.
      preferred: the best one for this platform and these shapes.
    Raises:
      UnsupportedError: the op has no implementation of that name.
    """
    if implementation is None:
        _log_choice(op, preferred, platform())
        return preferred
    if implementation not in names:
        raise UnsupportedError(
            f"{op} has no implementation {implementation!r}; it has {', '.join(names)}, or None"
        )
    return implementation


def kernel_here(kernels: Mapping[str, Callable[..., str | None]], *arguments: Any) -> str | None:
    """The platform, if that has a kernel which can run these arguments.

    Args:
      kernels: for each platform that has one, why it cannot run them; None where it can.
    """
    name = platform()
    return name if name in kernels and kernels[name](*arguments) is None else None


def unsupported(op: str, implementation: str, reason: str, instead: str) -> UnsupportedError:
    """The error of an implementation that cannot run: which op and name, why, and what would
    work."""
    return UnsupportedError(f"{op} implementation {implementation!r} {reason}; use {instead}")


def require(op: str, implementation: str, reason: str | None, fallback: str) -> None:
    """Raises `unsupported` where there is a reason; `fallback` is the implementation to name instead."""
    if reason is not None:
        instead = f"{fallback!r}, or None to let it choose"
        raise unsupported(op, implementation, reason, instead)


def dtypes_unsupported_reason(names: str, *arrays: Any) -> str | None:
    """Why a kernel that takes these arrays all bfloat16 or all float32 cannot run; None where it can."""
    types = sorted({str(x.dtype) for x in arrays})
    if types in (["bfloat16"], ["float32"]):
        return None
    return f"takes {names} all bfloat16 or all float32, not {', '.join(types)}"


@functools.cache
def _log_choice(op: str, name: str, where: str) -> None:
    logger.info("%s runs %r on %s", op, name, where)
