"""Between selection and distillation: output projections of mixers and MLPs, refitted on the student's own stream.

`halo/closed_form/student_fit.py` says how and why. Ours; the published recipe has no such stage.
"""

import dataclasses
from typing import ClassVar

import jax

from hypenet_jax.axes import Params
from hypenet_jax.halo.closed_form.student_fit import neutral_student, refitted
from hypenet_jax.halo.method import AbstractParams, Method, Models, Work, abstract_params
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.sharding import on_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefitConfig(Method):
    """The refit: starts from the teacher with the mixers of stage 1 and neutral gates, leaves the whole student.

    Attributes:
      start_from: name of the stage 1 whose mixers the recurrent layers start from.
      batches: of the stage's text, all of which it keeps as streams: 2 B T D numbers each.
      ridge: strength of the regression; see `halo/closed_form/regression.py`.
    """

    reads_teacher: ClassVar[bool] = True

    start_from: str
    batches: int
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if self.batches < 1 or self.ridge <= 0:
            raise ValueError(f"{self}: batches must be at least 1, and ridge above 0")

    def parent(self, models: Models) -> AbstractParams:
        return models.aligned_mixers()

    def run(self, work: Work) -> Params:
        with on_mesh(work.mesh):
            models, text = work.models, work.batches(self.batches)
            start = neutral_student(work, models)
            student = refitted(work, models, start, text, ridge=self.ridge, fit=work.fit)
            stacked = abstract_params(models.student).shardings(work.mesh)
            config = models.student.config
            return jax.jit(lambda single: stack_layers(single, config), out_shardings=stacked)(
                student
            )
