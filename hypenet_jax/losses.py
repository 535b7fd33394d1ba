"""Sums over tokens of next-token, distillation and alignment losses, each with the weight to divide by.

A loss is a pair (total, weight), so that micro-batches and devices can be added up before the one division.
All sums are float32: a running bfloat16 total is off by up to 1 %.
"""

import typing
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Scalar, SegmentIds, Tokens, Weights
from hypenet_jax.sharding import mesh_axes
from pallas_kernels import linear_cross_entropy, linear_kl
from pallas_kernels.mesh import on_each_device, parts


# Not checked at construction: tree functions build it with shapes or shardings as leaves.
@typing.no_type_check
@flax.struct.dataclass
class Mean:
    """A weighted sum over tokens and the sum of the weights; their ratio is the mean.

    Kept apart so that micro-batches, batches and devices can be added before the one division.
    """

    total: Scalar
    weight: Scalar

    def value(self) -> Scalar:
        """total / weight, and 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.total / jnp.maximum(self.weight, 1e-30), 0.0)


def next_token(hidden: Hidden, head: Float[Array, "V D"], tokens: Tokens, weights: Weights) -> Mean:
    """Cross entropy of each token given those before it: sum_t w_t (-log p(x_t | x_<t)), in nats.

    Args:
      hidden: final hidden states; position t - 1 predicts token t.
      head: output matrix.
      tokens: the text itself; shifted here.
      weights: how much the prediction of each token counts; the first token of a row is never predicted.
    """
    # The last position predicts nothing but stays, with weight 0: a cut sequence keeps its parts.
    targets, counted = jnp.roll(tokens, -1, axis=1), jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
    cut = _cuts(tokens, head)
    sources, targets, flat_counted = _flat(cut, hidden, targets, counted)
    total, _ = linear_cross_entropy(
        sources,
        head,
        targets,
        flat_counted,
        vocabulary_axes=cut.vocabulary,
        token_axes=cut.rows + cut.time,
    )
    return Mean(total, jnp.sum(counted))


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

    Every real position counts, without a shift, as in the official stage 2 (arXiv 2601.22156).
    """
    cut = _cuts(weights, student_head)
    flat_student, flat_teacher, counted = _flat(cut, student, teacher, weights)
    total, _ = linear_kl(
        flat_student,
        student_head,
        flat_teacher,
        teacher_head,
        counted,
        temperature=temperature,
        vocabulary_axes=cut.vocabulary,
        token_axes=cut.rows + cut.time,
    )
    return Mean(total, jnp.sum(weights))


class _Cuts(NamedTuple):
    """The mesh axes that cut the vocabulary, the rows of text, and their length."""

    vocabulary: tuple[str, ...]
    rows: tuple[str, ...]
    time: tuple[str, ...]


def _cuts(tokens: Shaped[Array, "B T"], head: Float[Array, "V D"]) -> _Cuts:
    """Devices that share the width of the head need each other's rows of it, or each other's text: the fewer move."""
    (batch, length), (vocabulary, width) = tokens.shape, head.shape
    cut = _Cuts(
        mesh_axes(axes.VOCAB, vocabulary),
        mesh_axes(axes.BATCH, batch),
        mesh_axes(axes.TIME, length),
    )
    sharing = tuple(axis for axis in cut.rows if axis in mesh_axes(axes.EMBED, width))
    apart = tuple(axis for axis in cut.rows if axis not in sharing)
    finer = cut.vocabulary + sharing
    few = batch * length <= vocabulary * parts(apart + cut.time)
    return _Cuts(finer, apart, cut.time) if few and vocabulary % parts(finer) == 0 else cut


def _flat(cut: _Cuts, *arrays: Shaped[Array, "B T ..."]) -> list[Any]:
    """[B*T ...] of [B T ...], tokens in the order of the devices that hold them, so that none moves."""
    merge = lambda *own: [x.reshape(-1, *x.shape[2:]) for x in own]  # noqa: E731
    specs = PartitionSpec(cut.rows, cut.time), PartitionSpec(cut.rows + cut.time)
    return on_each_device(merge, *specs)(*arrays)


def squared_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of the mean square over the width of imitation - target."""
    gap = imitation.astype(jnp.float32) - target.astype(jnp.float32)
    per_token = jnp.mean(jnp.square(gap), axis=-1)
    return Mean(jnp.sum(per_token * weights), jnp.sum(weights))


def norm_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of |imitation - target| / sqrt(D), the alternative alignment loss of the official code."""
    gap = imitation.astype(jnp.float32) - target.astype(jnp.float32)
    # The norm has no gradient at zero; the smallest normal number keeps it finite where a student is perfect.
    per_token = jnp.sqrt(jnp.mean(jnp.square(gap), axis=-1) + jnp.finfo(jnp.float32).tiny)
    return Mean(jnp.sum(per_token * weights), jnp.sum(weights))


def token_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Sum over tokens of |imitation - target|^2 / |target|^2, each token by itself, so that parts of a batch add up."""
    wide = target.astype(jnp.float32)
    gap = jnp.mean(jnp.square(imitation.astype(jnp.float32) - wide), axis=-1)
    per_token = gap / (jnp.mean(jnp.square(wide), axis=-1) + jnp.finfo(jnp.float32).tiny)
    return Mean(jnp.sum(per_token * weights), jnp.sum(weights))


def relative_gap(imitation: Hidden, target: Hidden, weights: Weights) -> Mean:
    """Squared gap over tokens, and the target's own variance as its weight: 0 is perfect, 1 is predicting the mean."""
    real = weights[..., None]
    count = jnp.maximum(jnp.sum(weights), 1.0)
    wide = target.astype(jnp.float32)
    centre = jnp.sum(wide * real, axis=(0, 1), keepdims=True) / count
    variance = jnp.sum(jnp.mean(jnp.square(wide - centre), axis=-1) * weights)
    return Mean(squared_gap(imitation, target, weights).total, variance)


def real_tokens(segment_ids: SegmentIds) -> Weights:
    """1 for real tokens, 0 for padding."""
    return (segment_ids != 0).astype(jnp.float32)
