"""Teacher and student of a run: their plans, their decoders, their weights on the mesh."""

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
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.select import read_selection
from hypenet_jax.halo.transfer import aligned_spec
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params, logical_axes
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.sharding import shardings_of
from hypenet_jax.weights import read_hf
from hypenet_jax.weights.shards import find_tensors

# Beside the settings in what a stage writes: the fingerprint of the teacher that it read.
TEACHER = "teacher_weights"


def student_config(run: StageConfig) -> ModelConfig:
    """The student's plan; without a student section, the teacher's own.

    Raises:
      FileNotFoundError: the plan follows a selection that was not made yet.
    """
    if run.student is None:
        return run.teacher
    layers = run.student.softmax_layers
    if layers is None:
        path = run.final_of(str(run.student.selected_by)).parent / "selection.json"
        layers = read_selection(path).softmax_layers
    return hypenet(run.teacher, layers, rope_in_softmax=run.student.rope_in_softmax)


def decoder_of(config: ModelConfig, run: StageConfig) -> Decoder:
    """A decoder for training or scanning evaluation: float32 parameters, activations as the run says."""
    training = run.training
    dtype = jnp.float32 if training is None else jnp.dtype(training.dtype)
    start = getattr(run.method, "start", Initialization())
    remat = "none" if training is None else training.remat
    return Decoder(config, dtype=dtype, remat=remat, start=start)


def teacher_decoder(run: StageConfig) -> Decoder:
    """The frozen teacher's decoder: nothing of it is differentiated, so nothing is kept or recomputed."""
    return dataclasses.replace(decoder_of(run.teacher, run), remat="none")


def load_teacher(run: StageConfig, mesh: Mesh) -> tuple[Decoder, Params]:
    """The frozen teacher from its Hugging Face folder, stacked by runs, in the dtype of the computation.

    Raises:
      ConfigError: the folder holds another architecture than the config names.
      CheckpointError: the folder is not a whole model.
    """
    assert run.teacher_folder is not None
    decoder = teacher_decoder(run)
    found, params = read_hf(run.teacher_folder, dtype=decoder.dtype, mesh=mesh)
    if found != run.teacher:
        different = [
            f"{f.name}: {getattr(found, f.name)} there, {getattr(run.teacher, f.name)} in the config"
            for f in dataclasses.fields(ModelConfig)
            if getattr(found, f.name) != getattr(run.teacher, f.name)
        ]
        raise ConfigError(f"{run.teacher_folder} is not the teacher of {run.name}: {different}")
    return decoder, restacked(params, decoder, mesh)


def teacher_fingerprint(run: StageConfig) -> str | None:
    """Hash over the weight files of the teacher that this run reads, those that process 0 sees; None where it reads
    none, or its folder is gone.

    Raises:
      CheckpointError: the folder is not a whole model.
    """
    if run.teacher_folder is None or isinstance(run.method, FinetuneConfig):
        return None
    folder = pathlib.Path(run.teacher_folder).absolute()
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
    """Single layers as the runs of a decoder, on the mesh."""
    return jax.jit(
        lambda single: stack_layers(single, decoder.config),
        out_shardings=decoder_shardings(decoder, mesh),
    )(params)


def decoder_shapes(decoder: Decoder) -> Params:
    """Shapes of the parameters, without memory."""
    return jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))


def decoder_shardings(decoder: Decoder, mesh: Mesh) -> Params:
    """Where each parameter of a decoder lies."""
    return shardings_of(decoder_shapes(decoder), logical_axes(decoder), mesh)


def mixer_shapes(teacher: Decoder) -> Params:
    """Shapes of the stage-1 mixers of all layers, stacked on axis 0."""
    return _stacked_mixers(decoder_shapes(_all_aligned(teacher)))


def mixer_shardings(teacher: Decoder, mesh: Mesh) -> Params:
    """Where they lie."""
    return _stacked_mixers(decoder_shardings(_all_aligned(teacher), mesh))


def mixer_axes(teacher: Decoder) -> Params:
    """Logical axis names of each of their parameters."""
    return _stacked_mixers(logical_axes(_all_aligned(teacher)))


def _all_aligned(teacher: Decoder) -> Decoder:
    mixers = (aligned_spec(teacher.config),) * teacher.config.num_layers
    return Decoder(dataclasses.replace(teacher.config, mixers=mixers))


def _stacked_mixers(whole: Params) -> Params:
    (run,) = (tree for name, tree in whole.items() if name.startswith("layers_"))
    return run["mixer"]
