"""Sums over tokens of next-token, distillation and alignment losses, each with the weight to divide by.

A loss is a pair (total, weight), so that micro-batches and devices can be summed before a single division.
All sums are float32: a running bfloat16 total is off by up to 1 %.
"""

import typing
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Scalar, SegmentIds, Tokens, Weights
from hypenet_jax.sharding import mesh_axes
from pallas_kernels import (
    Divergence,
    MeshAxes,
    linear_cross_entropy,
    linear_distillation,
    linear_kl,
    num_shards,
    on_each_device,
)


# Not checked at construction: tree functions build it with shapes or shardings as leaves.
@typing.no_type_check
@flax.struct.dataclass
class Mean:
    """A weighted sum over tokens and the sum of the weights; their ratio is the mean. Of each row, they are "B"."""

    total: Scalar
    weight: Scalar

    def value(self) -> Scalar:
        """total / weight, or 0 if the weight is 0."""
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-30), 0.0)


def predicting(weights: Weights) -> Weights:
    """At each position the loss weight of the token that it predicts, which is the next one."""
    # The last position predicts nothing but stays, with weight 0: a cut sequence keeps its parts.
    return jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))


def next_token(hidden: Hidden, head: Float[Array, "V D"], tokens: Tokens, weights: Weights) -> Mean:
    """Cross entropy of each token given those before it: sum_t w_t (-log p(x_t | x_<t)), in nats.

    Args:
      hidden: final hidden states; position t - 1 predicts token t.
      head: output matrix.
      tokens: token ids; shifted here.
      weights: loss weight of predicting each token; the first token of a row is never predicted.
    """
    total, _, counted = _next_token(hidden, head, tokens, weights)
    return Mean(total, jnp.sum(counted))


def next_token_by_row(
    hidden: Hidden, head: Float[Array, "V D"], tokens: Tokens, weights: Weights
) -> Mean:
    """`next_token` of each row by itself, without gradients."""
    _, losses, counted = _next_token(hidden, head, tokens, weights)
    return Mean(jnp.sum(losses * counted, axis=1), jnp.sum(counted, axis=1))


def _next_token(
    hidden: Hidden, head: Float[Array, "V D"], tokens: Tokens, weights: Weights
) -> tuple[Scalar, Float[Array, "B T"], Weights]:
    """The total, the loss of each token, and its weight."""
    targets, counted = jnp.roll(tokens, -1, axis=1), predicting(weights)
    sharded = _op_axes(tokens, head)
    sources, targets, flat_counted = _flat(sharded, hidden, targets, counted)
    total, losses = linear_cross_entropy(sources, head, targets, flat_counted, mesh_axes=sharded)
    return total, _unflat(sharded, losses, tokens.shape), counted


def distillation(
    student: Hidden,
    student_head: Float[Array, "V D"],
    teacher: Float[Array, "B T E"],
    teacher_head: Float[Array, "V E"],
    weights: Weights,
    *,
    temperature: float,
) -> Mean:
    """KL(teacher || student) of the next-token distributions, summed over tokens with weights, in nats.

    Weights are those of positions, without a shift: in the official stage 2 (arXiv 2601.22156) every real one counts.
    """
    pair = (student, student_head, teacher, teacher_head)
    total, _ = _divergences(*pair, weights, temperature=temperature)
    return Mean(total, jnp.sum(weights))


def distillation_by_row(
    student: Hidden,
    student_head: Float[Array, "V D"],
    teacher: Float[Array, "B T E"],
    teacher_head: Float[Array, "V E"],
    weights: Weights,
) -> Mean:
    """`distillation` of each row by itself at temperature 1, without gradients."""
    pair = (student, student_head, teacher, teacher_head)
    _, losses = _divergences(*pair, weights, temperature=1.0)
    return Mean(jnp.sum(losses * weights, axis=1), jnp.sum(weights, axis=1))


def _divergences(
    student: Hidden,
    student_head: Float[Array, "V D"],
    teacher: Float[Array, "B T E"],
    teacher_head: Float[Array, "V E"],
    weights: Weights,
    *,
    temperature: float,
) -> tuple[Scalar, Float[Array, "B T"]]:
    """The weighted total, and KL of each token."""
    sharded = _op_axes(weights, student_head)
    flat_student, flat_teacher, counted = _flat(sharded, student, teacher, weights)
    total, losses = linear_kl(
        flat_student,
        student_head,
        flat_teacher,
        teacher_head,
        counted,
        temperature=temperature,
        mesh_axes=sharded,
    )
    return total, _unflat(sharded, losses, weights.shape)


class Distilled(NamedTuple):
    """Means of `distillation_and_next_token`; the total is of the divergence's weight."""

    total: Mean
    divergence: Mean
    cross_entropy: Mean
    teacher_cross_entropy: Mean


def distillation_and_next_token(
    student: Hidden,
    student_head: Float[Array, "V D"],
    teacher: Float[Array, "B T E"],
    teacher_head: Float[Array, "V E"],
    tokens: Tokens,
    weights: Weights,
    loss_weight: Weights,
    *,
    share: Scalar | float,
    divergence: Divergence,
    temperature: float,
) -> Distilled:
    """(1 - c) D + c H, D a divergence from the teacher and H the cross entropy, from one product with each head.

    total = sum_t (1 - c) w_t D_t + c u_t H_t;  w of positions as in `distillation`, u of what they predict as in
    `next_token`

    Args:
      share: c, between 0 and 1.
    """
    sharded, counted = _op_axes(tokens, student_head), predicting(loss_weight)
    both = jnp.stack([(1 - share) * weights, share * counted], axis=-1)
    hidden, target, labels, flat = _flat(
        sharded, student, teacher, jnp.roll(tokens, -1, axis=1), both
    )
    total, losses = linear_distillation(
        *(hidden, student_head, target, teacher_head, labels, flat),
        divergence=divergence,
        temperature=temperature,
        mesh_axes=sharded,
    )
    seen, flat_counted = _flat(sharded, weights * jnp.any(both != 0, axis=-1), counted)
    means = [
        Mean(jnp.sum(weight * losses[:, i]), jnp.sum(weight))
        for i, weight in enumerate((seen, flat_counted, flat_counted))
    ]
    return Distilled(Mean(total, jnp.sum(weights)), *means)


def _op_axes(tokens: Shaped[Array, "B T"], head: Float[Array, "V D"]) -> MeshAxes:
    """Where one mesh axis shards both batch and embed, all-gather whichever is smaller: head rows or tokens."""
    (batch, length), (vocabulary, width) = tokens.shape, head.shape
    sharded = MeshAxes(
        batch=mesh_axes(axes.BATCH, batch),
        sequence=mesh_axes(axes.TIME, length),
        vocabulary=mesh_axes(axes.VOCAB, vocabulary),
    )
    shared = tuple(axis for axis in sharded.batch if axis in mesh_axes(axes.EMBED, width))
    finer = sharded._replace(
        batch=tuple(axis for axis in sharded.batch if axis not in shared),
        vocabulary=sharded.vocabulary + shared,
    )
    few_tokens = batch * length <= vocabulary * num_shards(finer.tokens)
    return finer if few_tokens and vocabulary % num_shards(finer.vocabulary) == 0 else sharded


def _flat(sharded: MeshAxes, *arrays: Shaped[Array, "B T ..."]) -> list[Any]:
    """[B*T ...] of [B T ...], tokens ordered by device, so that no data moves."""
    merge = lambda *own: [x.reshape(-1, *x.shape[2:]) for x in own]  # noqa: E731
    specs = PartitionSpec(sharded.batch, sharded.sequence), PartitionSpec(sharded.tokens)
    return on_each_device(merge, *specs)(*arrays)


def _unflat(
    sharded: MeshAxes, tokens: Float[Array, "N"], shape: tuple[int, ...]
) -> Float[Array, "B T"]:
    """Undoes `_flat`."""
    rows, length = shape[0] // num_shards(sharded.batch), shape[1] // num_shards(sharded.sequence)
    specs = PartitionSpec(sharded.tokens), PartitionSpec(sharded.batch, sharded.sequence)
    return on_each_device(lambda own: own.reshape(rows, length), *specs)(tokens)


def squared_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of the mean square over the width of imitation - target."""
    return Mean(jnp.sum(_per_token(imitation, target) * weights), jnp.sum(weights))


def _per_token(imitation: Hidden, target: Hidden) -> Float[Array, "B T"]:
    gap = imitation.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(gap), axis=-1)


def norm_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of |imitation - target| / sqrt(D), the alternative alignment loss of the official code."""
    # The norm has no gradient at zero; the smallest normal number keeps it finite where a student is perfect.
    per_token = jnp.sqrt(_per_token(imitation, target) + jnp.finfo(jnp.float32).tiny)
    return Mean(jnp.sum(per_token * weights), jnp.sum(weights))


def token_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of |imitation - target|^2 / |target|^2, normalised per token, so that micro-batches sum up."""
    size = jnp.mean(jnp.square(target.astype(jnp.float32)), axis=-1)
    per_token = _per_token(imitation, target) / (size + jnp.finfo(jnp.float32).tiny)
    return Mean(jnp.sum(per_token * weights), jnp.sum(weights))


def relative_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Squared gap over tokens with the target's variance as its weight: 0 is perfect, 1 is predicting the mean."""
    real = weights[..., None]
    count = jnp.maximum(jnp.sum(weights), 1.0)
    wide = target.astype(jnp.float32)
    centre = jnp.sum(wide * real, axis=(0, 1), keepdims=True) / count
    variance = jnp.sum(jnp.mean(jnp.square(wide - centre), axis=-1) * weights)
    return Mean(squared_gap(imitation, target, weights).total, variance)


def relative_gap_by_row(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """`relative_gap` of each row by itself."""
    return jax.vmap(lambda *row: relative_gap(*(x[None] for x in row)))(imitation, target, weights)


def real_tokens(segment_ids: SegmentIds) -> Weights:
    """1 for real tokens, 0 for padding."""
    return (segment_ids != 0).astype(jnp.float32)
