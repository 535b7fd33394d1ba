"""What the bench knows of an op, and one case of it: a shape, a dtype, what is timed."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from pallas_kernels import dispatch

CHECKED = {"B": 1, "T": 1024, "S": 1024}
Shape = tuple[int, ...]


class Inputs(NamedTuple):
    """Arrays of one call of an op, and cotangents of its outputs."""

    arrays: tuple[jax.Array, ...]
    cotangents: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Mode:
    """What of an op is timed.

    Attributes:
      flops: `flops(*shape)` is the least that the definition needs.
      outputs: names of the op's first outputs; the others are not asked for.
      gradients: names of the gradients of all arrays, which are also taken; () for none.
    """

    name: str
    flops: Callable[..., float]
    outputs: tuple[str, ...]
    gradients: tuple[str, ...] = ()

    def runner(self, function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
        """Of `Inputs`, what a function of the arrays gives in this mode."""

        def outputs(*arrays):
            return jax.tree.leaves(function(*arrays))[: len(self.outputs)]

        def run(arrays, cotangents):
            if not self.gradients:
                return outputs(*arrays)
            out, pull_back = jax.vjp(outputs, *arrays)
            return [*out, *pull_back(list(cotangents))]

        return run


def forward_and_gradient(
    output: str, gradients: str, product: Callable[..., float], forward: int, both: int
) -> tuple[Mode, Mode]:
    """The modes of an op with one output that needs so many times `product(*shape)` operations."""
    return (
        Mode("forward", lambda *shape: forward * product(*shape), (output,)),
        Mode(
            "forward+gradient",
            lambda *shape: both * product(*shape),
            (output,),
            tuple(gradients.split()),
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """An op as it is timed.

    Attributes:
      axes: letters of a shape's numbers, "B T N H".
      shapes: on an accelerator; `cpu_shapes` on a CPU.
      call: `call(*arrays, implementation=name)`.
      definition: the same without a name, in jax.numpy.
      inputs: `inputs(seed, dtype, *shape)`.
      checked: by axis, how much of a shape is compared with float64.
      cpu_only: implementations that would take hours or terabytes at an accelerator's shapes.
      cpu_bar: a shape at which a CPU has a bar for gradients, and the implementations to compare.
    """

    name: str
    axes: str
    shapes: tuple[Shape, ...]
    cpu_shapes: tuple[Shape, ...]
    implementations: Collection[str]
    call: Callable[..., Any]
    definition: Callable[..., Any]
    inputs: Callable[..., Inputs]
    modes: tuple[Mode, ...]
    checked: Mapping[str, int] = dataclasses.field(default_factory=CHECKED.copy)
    cpu_only: tuple[str, ...] = ("recurrent", "reference", "dense")
    cpu_bar: tuple[Shape, tuple[str, ...]] | None = None

    def cases(self) -> list["Case"]:
        """Every shape and dtype to time here; a CPU has no bfloat16 units."""
        if dispatch.platform() == "cpu":
            names = tuple(self.implementations)
            return [Case(self, x, "float32", names, self.modes) for x in self.cpu_shapes]
        names = tuple(name for name in self.implementations if name not in self.cpu_only)
        dtypes = ("bfloat16", "float32")
        return [Case(self, x, dtype, names, self.modes) for x in self.shapes for dtype in dtypes]

    def bars(self) -> list["Case"]:
        """The case in which a CPU has a bar; none for most ops."""
        if self.cpu_bar is None:
            return []
        return [Case(self, self.cpu_bar[0], "float32", self.cpu_bar[1], self.modes[-1:])]


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape in one dtype, and what of it is timed."""

    op: Op
    shape: Shape
    dtype: str
    implementations: tuple[str, ...]
    modes: tuple[Mode, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The shape's numbers by their letters."""
        return dict(zip(self.op.axes.split(), self.shape, strict=True))

    @property
    def label(self) -> str:
        """The shape as text: "B1 T16384 N16 H128"."""
        return " ".join(f"{axis}{size}" for axis, size in self.sizes.items())

    def inputs(self, seed: int) -> Inputs:
        """Those that are timed."""
        return self.op.inputs(seed, self.dtype, *self.shape)


def random(seed: int, dtype: str, *shapes: Shape) -> list[Float[Array, "..."]]:
    """Normally distributed arrays of these shapes."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
