"""A stage of our own: the student's last hidden states follow the teacher's. Nothing else knows of it."""

import dataclasses
from typing import ClassVar

import jax

from hypenet_jax.halo.method import TrainedMethod
from hypenet_jax.halo.transfer import transfer, with_mixers
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

    def parent(self, models):
        return models.aligned_mixers()

    def initial_weights(self, models, weights, keys, shardings):
        teacher, student, key = models.teacher.config, models.student.config, keys("follow")

        def start(params, mixers):
            single = transfer(teacher, unstack_layers(params), student, key)
            return stack_layers(with_mixers(single, student, mixers), student)

        return jax.jit(start, out_shardings=shardings)(weights.teacher, weights.parent["mixers"])

    def flops(self, models, length):
        teacher = layers_flops(models.teacher.config, length)
        return Flops(teacher + models.student_flops(length).model)
