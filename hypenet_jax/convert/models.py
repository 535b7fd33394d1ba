"""Teacher and student of a stage: their plans, their decoders, their weights on the mesh."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.fingerprint import digest
from hypenet_jax.halo.method import Models, abstract_params
from hypenet_jax.halo.select import read_selection
from hypenet_jax.model.config import ModelConfig, hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.sharding import shardings_of
from hypenet_jax.weights import read_hf
from hypenet_jax.weights.shards import find_tensors

# Beside the settings in what a stage writes: the fingerprint of the teacher that it read.
TEACHER = "teacher_weights"


def student_config(config: StageConfig) -> ModelConfig:
    """The student's plan; without a student section, the teacher's own.

    Raises:
      FileNotFoundError: the plan follows a selection that was not made yet.
    """
    if config.student is None:
        return config.teacher
    layers = config.student.softmax_layers
    if layers is None:
        path = config.final_of(str(config.student.selected_by)).parent / "selection.json"
        layers = read_selection(path).softmax_layers
    rope = config.student.rope_in_softmax
    return hypenet(config.teacher, layers, mixer=config.mixer, rope_in_softmax=rope)


def exported_config(config: StageConfig) -> ModelConfig:
    """The student's plan as it is exported: with its logit scale, which training leaves out."""
    model = student_config(config)
    if config.student is None or config.student.logit_scale is None:
        return model
    return with_logit_scale(model, LogLengthScale(config.student.logit_scale))


def decoder_of(model: ModelConfig, config: StageConfig) -> Decoder:
    """A decoder for training or scanning evaluation: float32 parameters, activations as the stage says."""
    training = config.training
    if training is None:
        return Decoder(model, dtype=jnp.float32)
    return Decoder(model, dtype=jnp.dtype(training.dtype), remat=training.remat)


def models_of(config: StageConfig) -> Models:
    """Teacher and student of a stage.

    Raises:
      FileNotFoundError: the student's plan follows a selection that was not made yet.
    """
    student = decoder_of(student_config(config), config)
    return Models(teacher=teacher_decoder(config), student=student, mixer=config.mixer)


def teacher_decoder(config: StageConfig) -> Decoder:
    """The frozen teacher's decoder: nothing of it is differentiated, so nothing is kept or recomputed."""
    return dataclasses.replace(decoder_of(config.teacher, config), remat="none")


def load_teacher(config: StageConfig, mesh: Mesh) -> tuple[Decoder, Params]:
    """The frozen teacher from its Hugging Face folder, its layers stacked, in the dtype of the computation.

    Raises:
      ConfigError: the folder holds another architecture than the config names.
      CheckpointError: the folder is not a whole model.
    """
    assert config.teacher_folder is not None
    decoder = teacher_decoder(config)
    model, params = read_hf(config.teacher_folder, dtype=decoder.dtype, mesh=mesh)
    if model != config.teacher:
        different = [
            f"{f.name}: {getattr(model, f.name)} there, {getattr(config.teacher, f.name)} in the config"
            for f in dataclasses.fields(ModelConfig)
            if getattr(model, f.name) != getattr(config.teacher, f.name)
        ]
        raise ConfigError(
            f"{config.teacher_folder} is not the teacher of {config.name}: {different}"
        )
    return decoder, restacked(params, decoder, mesh)


def teacher_fingerprint(config: StageConfig) -> str | None:
    """Hash over the weight files of the teacher that this stage reads, those that process 0 sees; None where it reads
    none, or its folder is gone.

    Raises:
      CheckpointError: the folder is not a whole model.
    """
    if config.teacher_folder is None or not config.method.reads_teacher:
        return None
    folder = pathlib.Path(config.teacher_folder).absolute()
    first = jax.process_index() == 0
    # Only headers are read everywhere: a damaged folder ends all processes alike.
    files = {tensor.file for tensor in find_tensors(folder).values()} if folder.is_dir() else ()
    return runtime.broadcast(_hash_of(sorted(files)) if first and files else None)


def _hash_of(files: list[pathlib.Path]) -> str:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        stats = [file.stat() for file in files]
        sizes, times = [stat.st_size for stat in stats], [stat.st_mtime_ns for stat in stats]
        return digest([*threads.map(_file_hash, files, sizes, times)])


@functools.cache
def _file_hash(file: pathlib.Path, size: int, changed: int) -> str:
    """Read once by all stages of a chain, and again when it was written again."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def restacked(params: Params, decoder: Decoder, mesh: Mesh) -> Params:
    """Single layers as the stacked groups of a decoder, on the mesh."""
    return jax.jit(
        lambda single: stack_layers(single, decoder.config),
        out_shardings=decoder_shardings(decoder, mesh),
    )(params)


def decoder_shapes(decoder: Decoder) -> Params:
    """Shapes of the parameters, without memory."""
    return abstract_params(decoder).shapes


def decoder_shardings(decoder: Decoder, mesh: Mesh) -> Params:
    """How each parameter of a decoder is sharded."""
    params = abstract_params(decoder)
    return shardings_of(params.shapes, params.axes, mesh)
