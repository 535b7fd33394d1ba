"""ServeConfig: prefill or decoding at a long context, as a value to plan for."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import tyro

from hypenet_jax.model.config import ModelConfig
from hypenet_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One of the two programs of text generation, in bfloat16.

    Attributes:
      task: "prefill" reads the context in chunks; "decode" generates the next token.
      context_length: tokens of each row, and the capacity of its caches.
      batch: rows.
      mesh: sizes of the mesh axes.
    """

    command: ClassVar[str] = "launch.plan"

    model: Annotated[ModelConfig, tyro.conf.Fixed]
    task: Literal["prefill", "decode"]
    context_length: int
    batch: int = 1
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    @property
    def name(self) -> str:
        """Shown in the plan."""
        return self.task
