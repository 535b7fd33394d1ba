"""What a stage works with: its mesh, its text, and the weights that it starts from."""

import dataclasses

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.models import TEACHER, load_teacher, models_of, teacher_fingerprint
from hypenet_jax.convert.programs import check_neighbor_exchange
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared, open_prepared
from hypenet_jax.halo.method import Models, Weights
from hypenet_jax.sharding import make_mesh, shardings_of
from hypenet_jax.train.errors import CheckpointError
from hypenet_jax.train.stage_output import load_params, read_stage_output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage works with."""

    config: StageConfig
    mesh: Mesh
    prepared: Prepared
    models: Models
    weights: Weights


def open_inputs(config: StageConfig) -> Inputs:
    """Everything that the stage needs, prepared or read.

    Raises:
      CheckpointError: the stage before has not left its weights, or the teacher's folder is damaged.
      ConfigError: neighbor exchange over parts of the sequence that are too short for it.
      FileNotFoundError: the student's plan follows a selection that was not made yet.
    """
    mesh, prepared, models = make_mesh(config.mesh), prepared_data(config), models_of(config)
    check_neighbor_exchange(config, mesh)  # before anything large is read
    weights = read_weights(config, models, mesh)
    return Inputs(config=config, mesh=mesh, prepared=prepared, models=models, weights=weights)


def prepared_data(config: StageConfig) -> Prepared:
    """The tokenised corpus: process 0 prepares it, the others wait and open it."""
    if jax.process_index() == 0:
        prepare(config.data.corpus)
    runtime.meet("data prepared")
    prepared = open_prepared(config.data.corpus.folder)
    runtime.check_agreement(data=prepared.manifest)
    return prepared


def read_weights(config: StageConfig, models: Models, mesh: Mesh) -> Weights:
    """The teacher and what the stage before has left, as far as the method needs them.

    Raises:
      CheckpointError: the stage before left nothing, or learned from another teacher or another mixer.
    """
    method = config.method
    teacher = load_teacher(config, mesh)[1] if method.reads_teacher else None
    if method.start_from is None:
        return Weights(teacher=teacher)
    folder, expected = config.final_of(method.start_from), method.parent(models)
    if method.reads_teacher:
        _check_same_teacher(config, method.start_from)
    shardings = shardings_of(expected.shapes, expected.axes, mesh)
    parent, output = load_params(
        folder, method.start_from, like=expected.shapes, shardings=shardings
    )
    return Weights(teacher=teacher, parent=parent, fingerprint=output.fingerprint)


def _check_same_teacher(config: StageConfig, parent: str) -> None:
    folder = config.final_of(parent)
    written = read_stage_output(folder, parent).config
    if written.get("mixer") != config.mixer:
        raise CheckpointError(
            f"{folder}: trained with mixer {written.get('mixer')!r}, stage {config.name!r} has {config.mixer!r}; "
            "give both the same"
        )
    imitated = written.get(TEACHER)
    here = teacher_fingerprint(config)
    if imitated != here:
        raise CheckpointError(
            f"{folder}: imitates a teacher with the weights {imitated}, {config.teacher_folder} holds {here}; "
            f"bring that teacher back, or run stage {parent!r} with this one in another folder"
        )
