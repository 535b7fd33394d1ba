"""Lightning attention in chunks: products inside a chunk, one state passed from chunk to chunk."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import segments
from pallas_kernels.lightning_attention.reference import Operands
from pallas_kernels.products import product


class Decays(NamedTuple):
    """Factors by which the state decays; R is 1 or B and M is 1 or the number of chunks, where all
    rows or chunks agree."""

    within: Float[
        Array, "R M N C C"
    ]  # from token j to token i of a chunk; 0 where i must not see j
    entering: Float[Array, "R M N C"]  # from the state before the chunk to token i
    leaving: Float[Array, "R M N C"]  # from token j to the state after the chunk
    across: Float[Array, "R M N"]  # from the state before the chunk to the state after it


Prefix = Callable[
    [Float[Array, "R M N"], Float[Array, "B M N H H"], Float[Array, "B N H H"]],
    tuple[Float[Array, "B M N H H"], Float[Array, "B N H H"]],
]


def chunked(
    operands: Operands,
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Chunk states are joined one after the other; arguments and results as
    `lightning_attention`."""
    return in_chunks(operands, scale=scale, prefix=scan_prefix)


def in_chunks(
    operands: Operands,
    *,
    scale: float,
    prefix: Prefix,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Outputs and last state, with the states before each chunk found by `prefix`.

    For chunk m:  o = scale * ((q k^T * within) v + entering * (q S_m))
                  S_(m+1) = across * S_m + (k^T * leaving) v
    """
    q, k, v, log_decay, state, segment_ids = operands
    length, dtype = q.shape[1], q.dtype
    chunk = min(chunk_size(q.shape[3]), length)
    if segment_ids is None:
        decays = _decays_of_one_segment(log_decay, length, chunk)
    else:
        decays = _decays_of_segments(log_decay, segment_ids, chunk)
        real = segments.is_real(segment_ids)[..., None, None]
        q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
    q, k, v = (_split(x, chunk) for x in (q, k, v))
    # Turned once for both of its products: a CPU multiplies small matrices 1.4 times as fast so.
    keys = jnp.swapaxes(k, -1, -2)

    added = product("bmnhc,bmncv->bmnhv", keys * decays.leaving[..., None, :], v)
    before, last = prefix(decays.across, added, state)
    scores = product("bmnih,bmnhj->bmnij", scale * q, keys) * decays.within
    inside = product("bmnij,bmnjv->bmniv", scores, v)
    carried = product("bmnih,bmnhv->bmniv", scale * q, before) * decays.entering[..., None]
    return _join(inside + carried, length).astype(dtype), last


def scan_prefix(
    across: Float[Array, "R M N"],
    added: Float[Array, "B M N H H"],
    state: Float[Array, "B N H H"],
) -> tuple[Float[Array, "B M N H H"], Float[Array, "B N H H"]]:
    """State before each chunk and after the last one, chunk by chunk."""
    across = jnp.broadcast_to(across, (across.shape[0], *added.shape[1:3]))

    def step(state, chunk):
        factor, new = chunk
        return factor[..., None, None] * state + new, state

    last, before = jax.lax.scan(
        step, state, (jnp.swapaxes(across, 0, 1), jnp.swapaxes(added, 0, 1))
    )
    return jnp.swapaxes(before, 0, 1), last


def chunk_size(width: int) -> int:
    """Tokens per chunk: wide matrix units want more of them, a CPU about as many as a head is
    wide."""
    if dispatch.platform() != "cpu":
        return 128
    return 32 if width <= 32 else 64


def _decays_of_one_segment(log_decay: Float[Array, "N"], length: int, chunk: int) -> Decays:
    """Every row and every full chunk decay alike; the last chunk may be short, and must not decay
    past its last token."""
    steps = jnp.arange(chunk, dtype=jnp.float32)
    sizes = jnp.minimum(length - chunk * jnp.arange(-(-length // chunk)), chunk).astype(jnp.float32)
    gaps = steps[:, None] - steps[None, :]
    within = jnp.where(gaps >= 0, _decay_factor(log_decay, gaps), 0.0)
    return Decays(
        within=within[None, None],
        entering=_decay_factor(log_decay, steps + 1)[None, None],
        leaving=jnp.swapaxes(_decay_factor(log_decay, sizes[:, None] - 1 - steps[None, :]), 0, 1)[
            None
        ],
        across=jnp.swapaxes(_decay_factor(log_decay, sizes), 0, 1)[None],
    )


def _decays_of_segments(
    log_decay: Float[Array, "N"], segment_ids: Int[Array, "B T"], chunk: int
) -> Decays:
    """Distances count real tokens only, and nothing crosses the start of a segment."""
    pad = -segment_ids.shape[1] % chunk
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))
    shape = (segment_ids.shape[0], -1, chunk)
    real = segments.is_real(segment_ids).reshape(shape)
    count = jnp.cumsum(real, axis=-1, dtype=jnp.float32)  # [B M C]
    segment = jnp.cumsum(segments.starts_segment(segment_ids), axis=1).reshape(shape)
    end = segment[..., -1:]
    open_before = jnp.pad(end[:, :-1], ((0, 0), (1, 0), (0, 0)))

    gaps = count[..., :, None] - count[..., None, :]
    causal = jnp.tri(chunk, dtype=bool)[None, None]
    seen = causal & (segment[..., :, None] == segment[..., None, :])
    within = jnp.where(seen[:, :, None], jnp.moveaxis(_decay_factor(log_decay, gaps), 0, 2), 0.0)
    entering = jnp.where(
        (segment == open_before)[:, :, None],
        jnp.moveaxis(_decay_factor(log_decay, count), 0, 2),
        0.0,
    )
    to_end = jnp.moveaxis(_decay_factor(log_decay, count[..., -1:] - count), 0, 2)
    leaving = jnp.where((segment == end)[:, :, None], to_end, 0.0)
    across = jnp.where(
        end == open_before, jnp.moveaxis(_decay_factor(log_decay, count[..., -1]), 0, 2), 0.0
    )
    return Decays(within, entering, leaving, across)


def _decay_factor(log_decay: Float[Array, "N"], steps: Float[Array, "*S"]) -> Float[Array, "N *S"]:
    """exp(log_decay * steps). Steps are clamped before exp: masking an overflow afterwards gives 0
    * inf = NaN."""
    by_head = log_decay.reshape((-1,) + (1,) * steps.ndim)
    return jnp.exp(by_head * jnp.maximum(steps, 0.0)[None])


def _split(x: Float[Array, "B T N H"], chunk: int) -> Float[Array, "B M N C H"]:
    batch, length, heads, width = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -length % chunk), (0, 0), (0, 0)))
    return jnp.swapaxes(x.reshape(batch, -1, chunk, heads, width), 2, 3)


def _join(x: Float[Array, "B M N C H"], length: int) -> Float[Array, "B T N H"]:
    batch, chunks, heads, chunk, width = x.shape
    return jnp.swapaxes(x, 2, 3).reshape(batch, chunks * chunk, heads, width)[:, :length]
