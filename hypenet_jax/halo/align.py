"""Stage 1: each lightning mixer learns to imitate the softmax mixer that it will replace.

One pass of the teacher serves all layers: each student reads what its teacher layer read (the teacher's own normed
stream, with its positions) and is compared with what that layer wrote; nothing of it enters the next layer.
Source: arXiv 2601.22156, hidden-state alignment.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.halo.transfer import aligned_spec
from hypenet_jax.losses import Mean, norm_gap, real_tokens, relative_gap, squared_gap
from hypenet_jax.model.decoder import Decoder, Tap
from hypenet_jax.model.layers import Initialization, unroll_layers
from hypenet_jax.model.mixers import make_mixer
from hypenet_jax.model.token_layout import layout_tokens
from hypenet_jax.train.stage import Stage


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """Stage 1.

    Attributes:
      loss: "mse", mean square over layers, tokens and width; or "l2norm", mean norm over layers and tokens / sqrt(D).
    """

    loss: Literal["mse", "l2norm"] = "mse"


def align_stage(config: AlignConfig, teacher: Decoder) -> Stage:
    """Trains {"mixers": stacked mixers of all layers} against the frozen teacher (stacked by runs)."""
    gap = {"mse": squared_gap, "l2norm": norm_gap}[config.loss]

    def loss(student: Params, frozen: Params | None, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        output = teacher.apply(
            {"params": frozen}, batch.tokens, batch.positions, batch.segment_ids, taps=True
        )
        taps = jax.lax.stop_gradient(output.taps)
        imitations = imitate(student, teacher, taps, batch)
        weights = real_tokens(batch.segment_ids)
        gaps, relative = [], {}
        for i in range(teacher.config.num_layers):
            gaps.append(gap(imitations[i], taps.outputs[i], weights))
            relative[f"relative_error/{i}"] = relative_gap(imitations[i], taps.outputs[i], weights)
        total = jnp.mean(jnp.stack([each.total for each in gaps]))
        return Mean(total, gaps[0].weight), jax.lax.stop_gradient(relative)

    return Stage("align", loss, trainable=lambda path: True)


def imitate(student: Params, teacher: Decoder, taps: Tap, batch: Batch) -> jax.Array:
    """What every student mixer writes, "L B T D", given what its teacher mixer read: one scan over the layers."""
    mixer = make_mixer(
        aligned_spec(teacher.config),
        d_model=teacher.config.d_model,
        norm_eps=teacher.config.norm_eps,
        start=Initialization(),
        dtype=teacher.dtype,
    )
    rows, time = batch.tokens.shape
    layout, _ = layout_tokens(rows, time, batch.positions, batch.segment_ids, None)

    def one(carry: None, layer: tuple[Params, jax.Array]) -> tuple[None, jax.Array]:
        params, inputs = layer
        wrote, _ = mixer.apply({"params": params}, inputs, layout, None)
        return carry, wrote

    unroll = teacher.config.num_layers if unroll_layers() else 1
    _, wrote = jax.lax.scan(one, None, (student["mixers"], taps.inputs), unroll=unroll)
    return wrote
