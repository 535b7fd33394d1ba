"""What a stage is to the chain and to the planner: the interface that its config implements, in one file per stage.

What needs checkpoints, folders and meshes is handed in: decoders as `Models`, arrays as `Weights`, the loop as `Work`.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.selection.scores import Kind, Measure, Score
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, ModelConfig, aligned_spec
from hypenet_jax.model.cost import WITH_GRADIENTS, Flops, head_flops, layers_flops
from hypenet_jax.model.decoder import Decoder, init_params, logical_axes
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.sharding import shardings_of
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The decoders of a stage, without weights.

    Attributes:
      teacher: frozen: nothing of it is differentiated or recomputed.
      student: the plan that the stage works towards; the teacher's own where the config names no student.
      mixer: what replaces softmax attention, by its name in `MIXERS`.
      recurrent: its options.
      answers_only: their text is conversations, and losses on what comes next count what the assistant says.
    """

    teacher: Decoder
    student: Decoder
    mixer: str
    recurrent: MixerOptions = AS_PUBLISHED
    answers_only: bool = False

    @property
    def aligned_spec(self) -> MixerSpec:
        """The mixer that stands in for any layer of the teacher; see `model.config.aligned_spec`."""
        return aligned_spec(self.teacher.config, self.mixer, self.recurrent)

    def aligned_mixers(self) -> "AbstractParams":
        """{"mixers": ...} of stage 1: a mixer for every layer, stacked on axis 0."""
        specs = (self.aligned_spec,) * self.teacher.config.num_layers
        config = dataclasses.replace(self.teacher.config, mixers=specs)
        whole = abstract_params(Decoder(config))
        (group,) = (name for name in whole.shapes if name.startswith("layers_"))
        shapes, axes = ({"mixers": tree[group]["mixer"]} for tree in (whole.shapes, whole.axes))
        return AbstractParams(shapes=shapes, axes=axes)

    def student_flops(self, length: int) -> Flops:
        """The student's forward and backward pass for one row of this many tokens."""
        student = self.student.config
        layers = layers_flops(student, length)
        recomputed = layers if self.student.remat == "full" else 0.0
        return Flops(WITH_GRADIENTS * (layers + head_flops(student, length)), recomputed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractParams:
    """Parameters without memory: trees of shapes and of logical axis names."""

    shapes: Params
    axes: Params

    def shardings(self, mesh: Mesh) -> Params:
        """How each of them is sharded."""
        return shardings_of(self.shapes, self.axes, mesh)

    def placed(self, mesh: Mesh, dtype: DTypeLike | None = None) -> Params:
        """Their shapes with their shardings, in this dtype where one is given."""
        return jax.tree.map(
            lambda leaf, sharding: leaf.update(dtype=dtype or leaf.dtype, sharding=sharding),
            self.shapes,
            self.shardings(mesh),
        )


def abstract_params(decoder: Decoder) -> AbstractParams:
    """All parameters of a decoder."""
    shapes = jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))
    return AbstractParams(shapes=shapes, axes=logical_axes(decoder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What a stage may start from, on the mesh.

    Attributes:
      teacher: parameters of `Models.teacher`, groups of layers stacked; None where the method reads none.
      parent: final weights of the stage that `start_from` names; None where it names none.
      fingerprint: of `parent`.
    """

    teacher: Any = None
    parent: Any = None
    fingerprint: str | None = None


Fitted = tuple[jax.Array, Mapping[str, float]]
"""A kernel fitted in closed form, and its numbers."""


@runtime_checkable
class Train(Protocol):
    """The loop: trained parameters, resumed where an earlier call was cut off."""

    def __call__(self, start: Callable[[Params], Params] = ..., first_batch: int = ...) -> Params:
        """Trains from start(initial weights); batches before `first_batch` are left out."""
        ...


@runtime_checkable
class Fit(Protocol):
    """Kernels fitted in closed form one after another; each is fitted once and kept."""

    def __call__(
        self, number: int, count: int, kernel: jax.Array, solve: Callable[[], Fitted]
    ) -> jax.Array:
        """Kernel `number` of `count`, solved or read; of the shape and sharding of `kernel`."""
        ...


@runtime_checkable
class Keep(Protocol):
    """Scores of one model after another, each measured once and kept."""

    def __call__(self, model: str, measure: Measure) -> Sequence[Score]:
        """What `measure` returns, or returned in an earlier call that was cut off."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What the chain lends to a running stage.

    Attributes:
      models, weights: what it works with.
      mesh: where both are.
      folder: where it may leave files besides its final weights; process 0 writes them.
      batches: so many first batches of the stage's text, on the mesh.
      train: the loop.
      fit: keeps what is fitted in closed form.
      heldout: so many held-out rows, as batches on the mesh.
      measure: (kind, decoder, params, rows) to scores of so many held-out rows and their weights.
      keep: keeps what models of a sweep were scored.
    """

    models: Models
    weights: Weights
    mesh: Mesh
    folder: pathlib.Path
    batches: Callable[[int], list[Batch]]
    train: Train
    fit: Fit
    heldout: Callable[[int], Iterable[Batch]]
    measure: Callable[[Kind, Any, Params, int], tuple[np.ndarray, np.ndarray]]
    keep: Keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """How a stage gets its weights; a frozen dataclass of its numbers.

    Attributes:
      start_from: name of the stage whose final weights it needs; None for none.
      reads_teacher: whether it needs the teacher's weights.
    """

    reads_teacher: ClassVar[bool]

    start_from: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """Files and folders, beside text and weights, on whose content the result depends."""
        return ()

    def parent(self, models: Models) -> AbstractParams:
        """What `start_from` must have left: the whole student, unless a method says otherwise."""
        return abstract_params(models.student)

    def check(self, teacher: ModelConfig, evaluates: bool) -> None:
        """Raises ValueError, before anything runs, if its numbers do not fit this teacher, or the stage does not read
        held-out text while it trains and should.
        """
        return

    @abc.abstractmethod
    def run(self, work: Work) -> Params:
        """Does the work of the stage and returns its final weights."""


class TrainedMethod(Method):
    """A method whose weights come from the training loop: a loss, what is trainable, and where it starts."""

    @property
    @abc.abstractmethod
    def loss_name(self) -> str:
        """The loss and its unit, as plots name it."""

    @abc.abstractmethod
    def stage(self, models: Models) -> Stage:
        """The loss and what is trainable."""

    def params(self, models: Models) -> AbstractParams:
        """What is trained: the whole student, unless a method says otherwise."""
        return abstract_params(models.student)

    @abc.abstractmethod
    def initial_weights(
        self, models: Models, weights: Weights, keys: Callable[[str], jax.Array], shardings: Params
    ) -> Params:
        """The parameters before the first step, with these shardings. `keys` makes a random key of a name."""

    @abc.abstractmethod
    def flops(self, models: Models, length: int) -> Flops:
        """FLOPs of a training step for one row of this many tokens."""

    def run(self, work: Work) -> Params:
        return work.train()
