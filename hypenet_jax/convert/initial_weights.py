"""What a stage begins with: the weights of the stage before, the teacher, or fresh ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.config import StageConfig
from hypenet_jax.convert.models import (
    TEACHER,
    decoder_of,
    load_teacher,
    mixer_shardings,
    student_config,
    teacher_fingerprint,
)
from hypenet_jax.convert.programs import StageProgram
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig, distill_start
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.transfer import aligned_spec, lightning_mixers
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.train.errors import CheckpointError
from hypenet_jax.train.stage_output import StageOutput, load_params


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The weights that a stage begins with.

    Attributes:
      params: what it trains; frozen: the teacher, where there is one.
      parent: fingerprint of the weights it starts from.
    """

    params: Params
    frozen: Params | None = None
    parent: str | None = None


def initial_weights(run: StageConfig, parts: StageProgram, mesh: Mesh) -> InitialWeights:
    """Reads or makes what the stage begins with.

    Raises:
      CheckpointError: the stage before has not left its weights, or the teacher's folder is damaged.
    """
    kinds: dict[type, Callable[..., InitialWeights]] = {
        AlignConfig: _align,
        DistillConfig: _distill,
        FinetuneConfig: _finetune,
    }
    return kinds[type(run.method)](run, run.method, parts, mesh)


def _align(run: StageConfig, stage: AlignConfig, parts: StageProgram, mesh: Mesh) -> InitialWeights:
    teacher, frozen = load_teacher(run, mesh)
    key = runtime.keys(run.seed)("align")

    def start(params: Params) -> Params:
        single = unstack_layers(params)
        spec = aligned_spec(teacher.config)
        return {"mixers": lightning_mixers(teacher.config, single, spec, key)}

    return InitialWeights(jax.jit(start, out_shardings=parts.shardings)(frozen), frozen)


def _distill(
    run: StageConfig, stage: DistillConfig, parts: StageProgram, mesh: Mesh
) -> InitialWeights:
    teacher, frozen = load_teacher(run, mesh)
    student = student_config(run)
    aligned, parent_output = aligned_mixers(run, stage.start_from, teacher, mesh)
    key = runtime.keys(run.seed)("distill")

    def start(params: Params, mixers: Params) -> Params:
        single = unstack_layers(params)
        return stack_layers(distill_start(teacher.config, single, student, mixers, key), student)

    params = jax.jit(start, out_shardings=parts.shardings)(frozen, aligned["mixers"])
    return InitialWeights(params, frozen, parent_output.fingerprint)


def aligned_mixers(
    run: StageConfig, name: str, teacher: Decoder, mesh: Mesh
) -> tuple[Params, StageOutput]:
    """What stage 1, the run of this name, has left: a mixer for every layer.

    Raises:
      CheckpointError: it has left nothing, or imitated another teacher.
    """
    where = {"mixers": mixer_shardings(teacher, mesh)}
    aligned, parent_output = load_params(run.final_of(name), name, shardings=where)
    imitated, here = parent_output.config.get(TEACHER), teacher_fingerprint(run)
    if imitated != here:
        raise CheckpointError(
            f"{run.final_of(name)}: imitates a teacher with the weights {imitated}, {run.teacher_folder} holds {here}; "
            f"bring that teacher back, or run stage {name!r} with this one in another folder"
        )
    return aligned, parent_output


def _finetune(
    run: StageConfig, stage: FinetuneConfig, parts: StageProgram, mesh: Mesh
) -> InitialWeights:
    if stage.start_from is None:
        decoder = decoder_of(student_config(run), run)
        return InitialWeights(_fresh(decoder, runtime.keys(run.seed)("init"), parts.shardings))
    params, parent_output = load_params(
        run.final_of(stage.start_from),
        stage.start_from,
        like=parts.shapes,
        shardings=parts.shardings,
    )
    return InitialWeights(params, parent=parent_output.fingerprint)


def _fresh(decoder: Decoder, key: jax.Array, where: Any) -> Params:
    return jax.jit(lambda key: init_params(decoder, key), out_shardings=where)(key)
