"""Short convolutions over the real tokens of a segment, one filter per channel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hypenet_jax.axes import Queries, SegmentIds
from hypenet_jax.model.token_layout import TokenLayout

WIDTH = 4
"""Tokens that a filter sees: its own and the three before it."""

Inputs = Float[Array, "B I N H"]
"""The last WIDTH - 1 inputs of the open segment of each row, zeros where it is shorter."""


def short_conv(
    x: Queries, taps: Float[Array, "N H W"], before: Inputs | None, layout: TokenLayout
) -> tuple[Queries, Inputs]:
    """y_t = silu(sum_i taps_i x_(t - W + 1 + i)), zeros before the segment; padding counts as no token.

    Args:
      before: inputs that came before; None is none. Rows of `layout.reset_state` begin anew.
    Returns:
      y in x's dtype, 0 at padding; and the inputs after the call, in x's dtype.
    """
    lags = taps.shape[-1] - 1
    if before is None:
        before = jnp.zeros((len(x), lags, *x.shape[2:]), x.dtype)
    elif layout.reset_state is not None:
        before = jnp.where(layout.reset_state[:, None, None, None], 0, before)
    if layout.single_segment:
        whole = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        return _filtered(whole, taps, None), whole[:, x.shape[1] :]
    assert layout.segment_ids is not None
    return _of_segments(x, taps, before.astype(x.dtype), layout.segment_ids)


def _of_segments(
    x: Queries, taps: Float[Array, "N H W"], before: Inputs, segment_ids: SegmentIds
) -> tuple[Queries, Inputs]:
    """Real tokens are moved together, behind the inputs before them, which are of the first segment."""
    lags, length = before.shape[1], x.shape[1]
    rows, real = jnp.arange(len(x))[:, None], segment_ids != 0
    last = jnp.max(segment_ids, axis=1, keepdims=True)  # they grow
    first = jnp.min(jnp.where(real, segment_ids, last), axis=1, keepdims=True)
    count = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    places = jnp.where(real, lags + count - 1, lags + length)

    def together(head: Array, tail: Array) -> Array:
        room = jnp.concatenate([head, jnp.zeros_like(tail)], axis=1)
        return room.at[rows, places].set(tail, mode="drop")

    ids = together(jnp.broadcast_to(first, (len(x), lags)), segment_ids)
    whole = together(before, x)
    y = _filtered(whole, taps, ids)[rows, jnp.minimum(places - lags, length - 1)]
    end = count[:, -1:] + jnp.arange(lags)[None]
    after = jnp.where((ids[rows, end] == last)[..., None, None], whole[rows, end], 0)
    return jnp.where(real[..., None, None], y, 0), after


def _filtered(
    whole: Float[Array, "B _ N H"], taps: Float[Array, "N H W"], ids: Int[Array, "B _"] | None
) -> Queries:
    """Of every token behind the first W - 1, in float32; a filter sees tokens of its own id alone."""
    lags = taps.shape[-1] - 1
    length = whole.shape[1] - lags
    total = jnp.zeros((len(whole), length, *whole.shape[2:]), jnp.float32)
    for i in range(lags + 1):
        part = whole[:, i : i + length].astype(jnp.float32) * taps[..., i][None, None]
        if ids is not None and i < lags:
            same = ids[:, i : i + length] == ids[:, lags:]
            part = jnp.where(same[..., None, None], part, 0.0)
        total += part
    return jax.nn.silu(total).astype(whole.dtype)
