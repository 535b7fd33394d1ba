"""What a stage works with: its mesh, its text, and the weights that it starts from."""

import contextlib
import dataclasses

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError, resolved
from hypenet_jax.convert.programs import check_curriculum, check_neighbor_exchange, models_of
from hypenet_jax.convert.provenance import TEACHER, teacher_fingerprint
from hypenet_jax.data.batch import Batch
from hypenet_jax.data.loader import loader
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared, open_prepared
from hypenet_jax.halo.method import Models, Weights, abstract_params
from hypenet_jax.model.config import AS_PUBLISHED, ModelConfig
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.sharding import make_mesh, place_batch, row_parts
from hypenet_jax.train.errors import CheckpointError
from hypenet_jax.train.stage_output import load_params, read_stage_output
from hypenet_jax.weights import read_hf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage works with."""

    config: StageConfig
    mesh: Mesh
    prepared: Prepared
    models: Models
    weights: Weights


def open_inputs(config: StageConfig) -> Inputs:
    """Everything that the stage needs, prepared or read. Process 0 prepares the text, the others wait and open it.

    Raises:
      CheckpointError: the stage before has not left its weights, or the teacher's folder is damaged.
      ConfigError: neighbor exchange over parts of the sequence that are too short for it, or ids in the text that
        the teacher does not know.
      FileNotFoundError: the student's plan follows a selection that was not made yet.
      ShardingError: rows of a curriculum that do not divide over the mesh.
    """
    mesh = make_mesh(config.mesh)
    if jax.process_index() == 0:
        prepare(config.data.corpus)
    runtime.meet("data prepared")
    prepared = open_prepared(config.data.corpus.folder)
    runtime.check_agreement(data=prepared.manifest)
    if prepared.vocab_size > config.teacher.vocab_size:
        raise ConfigError(
            f"{config.data.corpus.folder} was prepared with a tokenizer that has ids up to {prepared.vocab_size - 1}, "
            f"the teacher a vocabulary of {config.teacher.vocab_size}; prepare it with the teacher's tokenizer"
        )
    models = models_of(config)
    check_neighbor_exchange(config, mesh)  # before anything large is read
    check_curriculum(config, mesh)
    weights = read_weights(config, models, mesh)
    return Inputs(config=config, mesh=mesh, prepared=prepared, models=models, weights=weights)


def first_batches(inputs: Inputs, count: int) -> list[Batch]:
    """So many first batches of the stage's text, on the mesh."""
    mesh = inputs.mesh
    with contextlib.closing(loader(inputs.config.data, inputs.prepared, *row_parts(mesh))) as text:
        return [place_batch(next(text), mesh) for _ in range(count)]


def read_weights(config: StageConfig, models: Models, mesh: Mesh) -> Weights:
    """The teacher and what the stage before has left, as far as the method needs them.

    Raises:
      CheckpointError: the stage before left nothing, or learned from another teacher or another mixer.
    """
    method = config.method
    teacher = load_teacher(config, models, mesh) if method.reads_teacher else None
    if method.start_from is None:
        return Weights(teacher=teacher)
    folder, expected = config.final_of(method.start_from), method.parent(models)
    if method.reads_teacher:
        _check_same_teacher(config, method.start_from)
    parent, metadata = load_params(folder, method.start_from, like=expected.placed(mesh))
    return Weights(teacher=teacher, parent=parent, fingerprint=metadata["fingerprint"])


def load_teacher(config: StageConfig, models: Models, mesh: Mesh) -> Params:
    """The frozen teacher from its Hugging Face folder, its layers stacked, in the dtype of the computation.

    Raises:
      ConfigError: the folder holds another architecture than the config names.
      CheckpointError: the folder is not a whole model.
    """
    assert config.teacher_folder is not None
    model, params = read_hf(config.teacher_folder, dtype=models.teacher.dtype, mesh=mesh)
    if model != config.teacher:
        different = [
            f"{f.name}: {getattr(model, f.name)} there, {getattr(config.teacher, f.name)} in the config"
            for f in dataclasses.fields(ModelConfig)
            if getattr(model, f.name) != getattr(config.teacher, f.name)
        ]
        raise ConfigError(
            f"{config.teacher_folder} is not the teacher of {config.name}: {different}"
        )
    shardings = abstract_params(models.teacher).shardings(mesh)
    return jax.jit(lambda single: stack_layers(single, model), out_shardings=shardings)(params)


def _check_same_teacher(config: StageConfig, parent: str) -> None:
    folder = config.final_of(parent)
    written = {
        "mixer": "lightning",
        "recurrent": AS_PUBLISHED,
        **read_stage_output(folder, parent)["config"],
    }
    for field in ("mixer", "recurrent"):
        theirs, ours = resolved(written[field]), resolved(getattr(config, field))
        if theirs != ours:
            raise CheckpointError(
                f"{folder}: trained with {field} {theirs!r}, stage {config.name!r} has {ours!r}; give both the same"
            )
    here = teacher_fingerprint(config)
    if written.get(TEACHER) != here:
        raise CheckpointError(
            f"{folder}: imitates a teacher with the weights {written.get(TEACHER)}, {config.teacher_folder} holds "
            f"{here}; bring that teacher back, or run stage {parent!r} with this one in another folder"
        )
