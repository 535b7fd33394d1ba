"""A stage of our own: the student's last hidden states follow the teacher's. Nothing else knows of it."""

import dataclasses
from typing import ClassVar

import jax

from hypenet_jax.halo.align import aligned_mixers
from hypenet_jax.halo.distill import distill_start
from hypenet_jax.halo.method import TrainedMethod, abstract_params
from hypenet_jax.losses import Mean, real_tokens, squared_gap
from hypenet_jax.model.cost import Flops, layers_flops
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowConfig(TrainedMethod):
    """Mean squared gap between the hidden states of student and teacher, times `weight`."""

    reads_teacher: ClassVar[bool] = True

    start_from: str
    weight: float = 1.0

    @property
    def loss_name(self):
        return "mean squared gap"

    def stage(self, models):
        def loss(params, frozen, batch):
            text = (batch.tokens, batch.positions, batch.segment_ids)
            target = models.teacher.apply({"params": frozen}, *text).hidden
            output = models.student.apply({"params": params}, *text).hidden
            gap = squared_gap(output, jax.lax.stop_gradient(target), real_tokens(text[2]))
            return Mean(self.weight * gap.total, gap.weight), {"gap": gap}

        return Stage("follow", loss, trainable=lambda path: path[0] != "embed")

    def params(self, models):
        return abstract_params(models.student)

    def parent(self, models):
        return aligned_mixers(models.teacher, models.aligned_spec)

    def initial_weights(self, models, weights, keys, shardings):
        teacher, student, key = models.teacher.config, models.student.config, keys("follow")

        def start(params, mixers):
            single = distill_start(teacher, unstack_layers(params), student, mixers, key)
            return stack_layers(single, student)

        return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])

    def flops(self, models, length):
        teacher, student = (
            layers_flops(m.config, length) for m in (models.teacher, models.student)
        )
        return Flops(teacher + 3 * student)
