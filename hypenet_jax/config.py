"""StageConfig: one stage as a value, made of sections that their rooms own; and HaloConfig, the stages in order.

A config file is a short Python program that defines `config`: such a value, or a function of typed arguments that
returns one. Its arguments, and every field of a StageConfig, can be set on the command line.
"""

import contextlib
import dataclasses
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from hypenet_jax.data.config import DataConfig
from hypenet_jax.evals.checks import EvaluateConfig
from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.sharding import MeshConfig
from hypenet_jax.train.loop import LoopConfig
from hypenet_jax.train.optimizer import OptimizerConfig

MethodConfig = AlignConfig | SelectConfig | DistillConfig | FinetuneConfig
Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config file or its settings cannot be used; the message says which and what would work."""


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """Which plan the student has, given its teacher.

    Attributes:
      softmax_layers: layers that keep softmax attention; None takes those that `selected_by` chose.
      selected_by: name of a select run.
      rope_in_softmax: keep rotary positions in the kept layers (a control).
      logit_scale: constant a of the log-length logit scale of the exported model; training never scales.
    """

    softmax_layers: tuple[int, ...] | None
    selected_by: str | None = None
    rope_in_softmax: bool = False
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        if (self.softmax_layers is None) == (self.selected_by is None):
            raise ConfigError(f"{self}: give softmax_layers or selected_by, not both or neither")


@dataclasses.dataclass(frozen=True)
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
    """

    optimizer: OptimizerConfig
    loop: LoopConfig
    dtype: Literal["bfloat16", "float32"]
    remat: Literal["none", "full"] = "none"
    tensorboard: bool = False
    neighbor_exchange: bool = False


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of a conversion.

    Attributes:
      name: of the stage; its files lie in run_dir/name, and later stages start from it by this name.
      run_dir: folder of the whole conversion.
      teacher: the pretrained model.
      teacher_folder: its Hugging Face folder; None only where the stage makes the teacher itself.
      student: plan of the student; None where the stage trains a plan like the teacher's.
      stage: which stage, with its numbers.
      data: what it reads.
      training: how it is trained; None for select, which trains nothing.
      mesh: sizes of the mesh axes.
      seed: of the run.
      export: also write the final model as a Hugging Face folder, `run_dir/name/hf`, in this precision.
    """

    name: str
    run_dir: str
    teacher: Annotated[ModelConfig, tyro.conf.Fixed]
    teacher_folder: str | None
    student: StudentConfig | None
    stage: MethodConfig
    data: DataConfig
    training: TrainingConfig | None
    mesh: MeshConfig
    seed: int
    export: Literal["bfloat16", "float32"] | None = None

    def __post_init__(self) -> None:
        if (self.training is None) != isinstance(self.stage, SelectConfig):
            raise ConfigError(f"{self.name}: every stage but select needs a training section")
        makes_teacher = isinstance(self.stage, FinetuneConfig) and self.student is None
        if self.teacher_folder is None and not makes_teacher:
            raise ConfigError(
                f"{self.name}: teacher_folder is needed for every stage with a teacher"
            )

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.run_dir) / self.name

    @property
    def hf_folder(self) -> pathlib.Path:
        return self.folder / "hf"

    def final_of(self, name: str) -> pathlib.Path:
        """Where the run of this name leaves its final weights."""
        return pathlib.Path(self.run_dir) / name / "final"


@dataclasses.dataclass(frozen=True)
class HaloConfig:
    """A whole conversion: its stages in order, and what is measured at the end.

    Attributes:
      run_dir: the same as of every run.
      runs: the stages.
      evaluate: lengths, tasks and bounds of the report; None ends after the last stage.
    """

    run_dir: str
    runs: Annotated[tuple[StageConfig, ...], tyro.conf.Fixed]
    evaluate: Annotated[EvaluateConfig | None, tyro.conf.Fixed] = None

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(set(names)) != len(names):
            raise ConfigError(f"two stages share a name: {names}")

    def run(self, name: str) -> StageConfig:
        """The stage of this name.

        Raises:
          ConfigError: there is none; lists those that are.
        """
        found = [run for run in self.runs if run.name == name]
        if not found:
            raise ConfigError(
                f"no stage {name!r}; the stages are {[run.name for run in self.runs]}"
            )
        return found[0]


def load(
    path: str, kind: type[Config] | tuple[type[Config], ...], arguments: Sequence[str] = ()
) -> Config:
    """The `config` of a config file, with overrides from the command line.

    Args:
      path: a Python file.
      kind: StageConfig, HaloConfig or EvaluationConfig, or several kinds.
      arguments: `--name value` pairs: arguments of the file's function first, then dotted fields of the value.
    Raises:
      ConfigError: no such file, no `config` in it, or another kind of config.
      SystemExit: code 2 for an unknown or ill-typed argument, after naming the nearest known ones; code 0 after
        `--help`, which lists the file's own arguments and then all fields.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    made: Any = runpy.run_path(path).get("config")
    if made is None:
        raise ConfigError(f"{path} defines no `config`")
    rest, own = list(arguments), ()
    if callable(made):
        if "--help" in rest:
            with contextlib.suppress(SystemExit):
                tyro.cli(made, args=["--help"], prog=path)
        own = tuple(inspect.signature(made).parameters)
        made, rest = _call(made, own, rest, path)
    if not isinstance(made, kind):
        others = {"HaloConfig": "halo", "EvaluationConfig": "evaluate", "ServeConfig": "plan"}
        name = type(made).__name__
        raise ConfigError(
            f"{path} makes a {name}; use python -m launch.{others.get(name, 'train')}"
        )
    if not rest:
        return made
    try:
        fields = (tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed)
        return tyro.cli(type(made), default=made, args=rest, prog=path, config=fields)
    except SystemExit as stopped:
        if stopped.code:
            # The parser of the fields has not heard of them.
            print(f"{path} itself takes {', '.join(map(_flag, own)) or 'nothing'}", file=sys.stderr)
        raise


def _call(
    make: Callable[..., Any], own: tuple[str, ...], arguments: list[str], path: str
) -> tuple[Any, list[str]]:
    """The value a config function makes of the arguments that are its own, and the other arguments."""
    flags = {*map(_flag, own)}
    mine: list[str] = []
    rest: list[str] = []
    taker = rest
    for word in arguments:
        if word.startswith("--"):
            taker = mine if _flag(word.removeprefix("--").split("=")[0]) in flags else rest
        taker.append(word)
    return tyro.cli(make, args=mine, prog=path, description=make.__doc__), rest


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def resolved(config: Any) -> Any:
    """A config as JSON can hold it, each section with the name of its kind, so that equal means the same run."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [resolved(item) for item in config]
    return config
