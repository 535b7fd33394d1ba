"""StageConfig: one stage as a value, made of sections that their rooms own; and HaloConfig, the stages in order."""

import dataclasses
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

from hypenet_jax.config_file import ConfigError
from hypenet_jax.data.config import DataConfig
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.halo.method import Method, TrainedMethod
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, ModelConfig, aligned_spec
from hypenet_jax.model.mixers import SoftmaxSpec, mixer_kind
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Which plan the student has, given its teacher.

    Attributes:
      softmax_layers: layers that keep softmax attention.
      pattern: in place of a list, names of mixers that repeat over the layers: "lightning", "lightning", "lightning",
        "softmax" keeps every fourth.
      selected_by: name of a select stage that chooses the layers, in place of both.
      softmax: options of the kept layers; `rope` keeps their rotary positions (a control).
      tie_embeddings: whether the output head is the embedding; None: as the teacher's.
      logit_scale: constant a of the log-length logit scale of the exported model; training never scales.
    """

    softmax_layers: tuple[int, ...] | None = None
    pattern: tuple[str, ...] | None = None
    selected_by: str | None = None
    softmax: MixerOptions = AS_PUBLISHED
    tie_embeddings: bool | None = None
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        given = [self.softmax_layers, self.pattern, self.selected_by]
        if sum(one is not None for one in given) != 1 or self.pattern == ():
            raise ConfigError(f"{self}: give one of softmax_layers, pattern and selected_by")

    def layers_by_pattern(self, num_layers: int) -> tuple[int, ...]:
        """Those where the pattern has softmax attention."""
        assert self.pattern is not None
        return tuple(
            layer
            for layer in range(num_layers)
            if self.pattern[layer % len(self.pattern)] == SoftmaxSpec.NAME
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a stage is trained.

    Attributes:
      optimizer, loop: numbers of AdamW and of the loop.
      dtype: of activations; parameters are float32 master weights either way.
      remat: "full" recomputes each layer in the backward pass.
      tensorboard: also write event files, `run_dir/name/tensorboard`; needs the extra of that name.
      neighbor_exchange: where a mesh axis shards the sequence, recurrent layers send their state to the next device
        alone. What is left out is at most 2^-24 of a state; shards too short for that are refused, and rows with too
        much padding exchange all.
      rounded_tables: rotary frequencies and decay slopes are rounded to bfloat16, the teacher's too, as in stages 1 and
        2 of the official code (`model.hype.rounded_tables`).
    """

    optimizer: OptimizerConfig
    loop: LoopConfig
    dtype: Literal["bfloat16", "float32"]
    remat: Literal["none", "full"] = "none"
    tensorboard: bool = False
    neighbor_exchange: bool = False
    rounded_tables: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a conversion.

    Attributes:
      name: of the stage; its files lie in run_dir/name, and later stages start from it by this name.
      run_dir: folder of the whole conversion.
      teacher: the pretrained model.
      teacher_folder: its Hugging Face folder, or its name in the local cache (`model_folder`); None only where the
        stage makes the teacher itself.
      student: plan of the student; None where the stage trains a plan like the teacher's.
      mixer: what replaces softmax attention in the student, by its name in `MIXERS`; the same in all stages.
      recurrent: options of that mixer; the same in all stages.
      method: how it learns, with its numbers.
      data: what it reads.
      training: how it is trained; None for select and refit, which train nothing.
      mesh: sizes of the mesh axes.
      seed: of the stage.
      export: also write the final model as a Hugging Face folder, `run_dir/name/hf`, in this precision.
    """

    command: ClassVar[str] = "launch.train"

    name: str
    run_dir: str
    teacher: Annotated[ModelConfig, tyro.conf.Fixed]
    teacher_folder: str | None
    student: StudentConfig | None
    method: Method
    data: DataConfig
    training: TrainingConfig | None
    mesh: MeshConfig
    seed: int
    export: Literal["bfloat16", "float32"] | None = None
    mixer: str = "lightning"
    recurrent: MixerOptions = AS_PUBLISHED

    def __post_init__(self) -> None:
        mixer_kind(self.mixer)
        if self.method.reads_teacher or self.student is not None:
            aligned_spec(self.teacher, self.mixer, self.recurrent)
        named = set((self.student and self.student.pattern) or ())
        if others := named - {SoftmaxSpec.NAME, self.mixer}:
            raise ConfigError(
                f"{self.name}: the pattern names {sorted(others)}; layers are softmax or {self.mixer}, its mixer"
            )
        loop = self.training and self.training.loop
        self.method.check(self.teacher, bool(loop and loop.evaluate_every))
        if (self.training is None) == isinstance(self.method, TrainedMethod):
            trains = isinstance(self.method, TrainedMethod)
            needs = "needs a training section" if trains else "trains nothing: leave training out"
            raise ConfigError(f"{self.name}: {needs}")
        self._check_curriculum()
        makes_teacher = not self.method.reads_teacher and self.student is None
        if self.teacher_folder is None and not makes_teacher:
            raise ConfigError(
                f"{self.name}: teacher_folder is needed for every stage with a teacher"
            )

    def _check_curriculum(self) -> None:
        first = self.data.phases[-1].first_batch
        if first and self.training is None:
            raise ConfigError(f"{self.name}: trains nothing: leave data.curriculum out")
        if self.training is not None and self.training.loop.steps <= first > 0:
            raise ConfigError(
                f"{self.name}: data.curriculum takes {first} of {self.training.loop.steps} steps and leaves none for "
                f"rows of {self.data.context_length} tokens; give it fewer tokens, or training.loop.steps more"
            )

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.run_dir) / self.name

    @property
    def hf_folder(self) -> pathlib.Path:
        return self.folder / "hf"

    def final_of(self, name: str) -> pathlib.Path:
        """Where the stage of this name leaves its final weights."""
        return pathlib.Path(self.run_dir) / name / "final"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HaloConfig:
    """A whole conversion: its stages in order, and what is measured at the end.

    Attributes:
      run_dir: the same as of every stage.
      stages: on the command line each is a section of its name, `--distill.training.loop.steps 100`.
      evaluation: what is measured of the exported models; None ends after the last stage.
    """

    command: ClassVar[str] = "launch.halo"

    run_dir: str
    stages: tuple[StageConfig, ...]
    evaluation: EvaluationConfig | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"two stages share a name: {names}")
        elsewhere = {stage.run_dir for stage in self.stages} - {self.run_dir}
        if elsewhere:
            raise ConfigError(f"stages lie in {sorted(elsewhere)}, not in {self.run_dir}: use one")
        for stage in self.stages:
            if stage.method.start_from in names:
                _check_same_plan(stage, self.stage(stage.method.start_from))

    def stage(self, name: str) -> StageConfig:
        """The stage of this name.

        Raises:
          ConfigError: there is none; lists those that are.
        """
        stages = {stage.name: stage for stage in self.stages}
        if name not in stages:
            raise ConfigError(f"no stage {name!r}; the stages are {[*stages]}")
        return stages[name]


def _check_same_plan(stage: StageConfig, parent: StageConfig) -> None:
    """Refuses a stage that starts from weights of another plan, as far as both say theirs."""
    fields = {
        name: (getattr(stage, name), getattr(parent, name)) for name in ("mixer", "recurrent")
    }
    if stage.student is not None and parent.student is not None:
        for name in ("softmax", "tie_embeddings"):
            pair = getattr(stage.student, name), getattr(parent.student, name)
            fields[f"student.{name}"] = pair
    different = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    if different:
        raise ConfigError(
            f"{stage.name} starts from {parent.name}, whose plan differs: {different}; give both the same"
        )
