"""ServeConfig: a model that reads or continues a long context, as a value to plan with."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import tyro

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """One of the two programs of text generation, in bfloat16.

    Attributes:
      task: "prefill" reads the context, part by part; "decode" writes the token after it.
      context_length: tokens of each row, and room in its state.
      batch: rows.
    """

    command: ClassVar[str] = "launch.plan"

    name: str
    model: Annotated[ModelConfig, tyro.conf.Fixed]
    task: Literal["prefill", "decode"]
    context_length: int
    batch: int
    mesh: MeshConfig
