"""What the TPU kernels of the losses form of a tile of logits, and what becomes of it.

A tile is [vocabulary, tokens]: what is summed lies one below the other, and a number per token is a
row. The sums of a tile are relative to its own maxima, so that tiles join as devices do.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.linear_loss.per_token import divergence, known, maxima, sums
from pallas_kernels.linear_loss.reference import Settings

Rows = list[Float[Array, "1 C"]]
Tile = Float[Array, "S C"]
TileSums = tuple[Float[Array, "J 1 C"], ...]  # of every tile
TILES = (0, 1)  # axes of tile sums but the tokens
Joined = tuple[Float[Array, "C"], Float[Array, "n C"]]  # loss of each token, rows for `d_logits`


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """As `linear_cross_entropy`; a label is a row number among all of the vocabulary's."""

    settings: Settings
    sums_per_tile: ClassVar[int] = 3

    def tile_sums(self, values: list[Tile], index: Int[Array, "S 1"], labels: Any) -> Rows:
        (x,), (labels,) = values, labels
        top = jnp.max(x, axis=0, keepdims=True)
        logit = jnp.where(index == labels, x, 0.0)
        return [top, _sum(jnp.exp(x - top)), _sum(logit)]

    def join(self, tile: TileSums, weights: Float[Array, "C"], labels: Any) -> Joined:
        """The rows are maximum, weight over sum, weight."""
        axes, (tops, totals, logits) = self.settings.axes.vocabulary, tile
        (top,) = maxima(axes, TILES, tops)
        total, logit = sums(axes, TILES, totals * jnp.exp(tops - top[None, None]), logits)
        token_loss = known(jnp.log(total) - (logit - top), labels[0], self.settings.vocabulary)
        return token_loss, jnp.stack([top, weights / total, weights])

    def d_logits(
        self, values: list[Tile], rows: Float[Array, "n C"], index: Int[Array, "S 1"], labels: Any
    ) -> Tile:
        (x,), (labels,) = values, labels
        top, share, weight = _split(rows)
        return share * jnp.exp(x - top) - jnp.where(index == labels, weight, 0.0)


@dataclasses.dataclass(frozen=True)
class Kl:
    """As `linear_kl`, of student and teacher in turn."""

    settings: Settings
    sums_per_tile: ClassVar[int] = 5

    def tile_sums(self, values: list[Tile], index: Int[Array, "S 1"], labels: Any) -> Rows:
        tops = [jnp.max(x, axis=0, keepdims=True) for x in values]
        student, teacher = (x - top for x, top in zip(values, tops, strict=True))
        t = jnp.exp(teacher)
        gap = _sum(t * (teacher - student))
        return [tops[0], _sum(jnp.exp(student)), tops[1], _sum(t), gap]

    def join(self, tile: TileSums, weights: Float[Array, "C"], labels: Any) -> Joined:
        """The rows are maximum and weight over sum, of both."""
        axes, r = self.settings.axes.vocabulary, self.settings.temperature
        s_tops, s_totals, t_tops, t_totals, gaps = tile
        s_top, t_top = maxima(axes, TILES, s_tops, t_tops)
        s_shift, t_shift = s_tops - s_top[None, None], t_tops - t_top[None, None]
        s, t = jnp.exp(s_shift), jnp.exp(t_shift)
        gaps = gaps + t_totals * (t_shift - s_shift)
        s_total, t_total, gap = sums(axes, TILES, s_totals * s, t_totals * t, gaps * t)
        rows = jnp.stack([s_top, r * weights / s_total, t_top, r * weights / t_total])
        return divergence(s_total, t_total, gap, r), rows

    def d_logits(
        self, values: list[Tile], rows: Float[Array, "n C"], index: Int[Array, "S 1"], labels: Any
    ) -> Tile:
        student, teacher = values
        s_top, s_share, t_top, t_share = _split(rows)
        return s_share * jnp.exp(student - s_top) - t_share * jnp.exp(teacher - t_top)


TileLoss = CrossEntropy | Kl


def _split(rows: Float[Array, "n C"]) -> Rows:
    return [rows[i : i + 1] for i in range(rows.shape[0])]


def _sum(x: Tile) -> Float[Array, "1 C"]:
    return jnp.sum(x, axis=0, keepdims=True)
