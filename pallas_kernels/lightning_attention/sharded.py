"""Lightning attention on a mesh whose axes cut the batch, the sequence and the heads.

The compiler cannot cut up a Pallas kernel, so every device runs the whole op on its own part. Rows
and heads do not speak to each other. Along a cut sequence each device first sums up what its own
tokens write, [B, N, H, H] float32 whatever their number; these sums are all that is exchanged, and
from them every device makes the memory that its own tokens begin with: from all of them, or inside
`neighbor_exchange` from its neighbour's alone.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.lightning_attention import documents, lightning_attention
from pallas_kernels.mesh import MeshAxes, everywhere, on_each_device, parts
from pallas_kernels.products import Precision, product

Tokens = Float[Array, "B T N H"]
Memory = Float[Array, "B N H H"]

FORGOTTEN = 2.0**-24
"""What is left of a memory that `neighbor_exchange` does not pass on: less than float32 rounds off beside the whole."""

# Part of what `jax.jit` caches by: a function traced inside and outside is traced twice.
_short = jax.make_user_context(False)


class Summary(NamedTuple):
    """A part of every row, as far as the tokens after it can tell."""

    written: Float[Array, "B N H H"]  # the memory after it, from an empty one
    across: Float[Array, "B N"]  # factor on the memory before it; 0 where a document starts inside
    first: Int[Array, "B"]  # document of its first and last real token; 0 where all is padding
    last: Int[Array, "B"]


@contextlib.contextmanager
def neighbor_exchange() -> Iterator[None]:
    """Inside, a device hands its sum to the next one alone, where parts are long enough for that.

    Left out of the memory m_i that part i begins with is exp(log_decay * n) m_(i-1), n the real
    tokens of the part before: at most FORGOTTEN of the older memory, per head and number. Where some
    part but the last fades less, for it is short or has much padding, that call exchanges all sums.
    """
    with _short(True):
        yield


def sharded(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float,
    batch: MeshAxes,
    heads: MeshAxes,
    sequence: MeshAxes = None,
    implementation: str | None = None,
    precision: Precision = "split",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """`lightning_attention` on the mesh of `jax.set_mesh`; arguments and results as there.

    Args:
      batch, heads, sequence: the mesh axes that cut B, N and T, which they must divide; None: not
        cut. Other axes of the mesh that are larger than 1 leave the choice to implementations that
        the compiler can cut up.
    Raises:
      UnsupportedError: as `lightning_attention`.
      ValueError: a size that its mesh axes do not divide.
    Source: arXiv 2502.07563 (one all-gather of memories along the sequence).
    """
    tokens, memory = PartitionSpec(batch, sequence, heads), PartitionSpec(batch, heads)
    rows = PartitionSpec(batch, sequence)
    how = {"scale": scale, "implementation": implementation, "precision": precision}
    local = functools.partial(lightning_attention, **how)
    if parts(sequence) > 1:
        local = functools.partial(_part_of_sequence, local, sequence)
    specs = (tokens, tokens, tokens, PartitionSpec(heads), memory, rows)
    run = on_each_device(local, specs, (tokens, memory))
    return run(q, k, v, log_decay, state, segment_ids)


def _part_of_sequence(
    attend: Callable[..., tuple[Tokens, Memory]],
    axes: MeshAxes,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    state: Float[Array, "B N H H"] | None,
    segment_ids: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N H H"]]:
    """Outputs of this device's tokens, and the memory after those of the last device."""
    log_decay = jax.lax.stop_gradient(log_decay)
    marks = jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids
    summary = _summary(k, v, log_decay, marks)
    if state is None:
        state = jnp.zeros_like(summary.written)
    state = state.astype(jnp.float32)
    if _short.value:
        forgotten = _is_forgotten(axes, summary.across)
        near, all_parts = (functools.partial(way, axes) for way in (_from_neighbour, _from_all))
        own, last = jax.lax.cond(forgotten, near, all_parts, summary, state)
    else:
        own, last = _from_all(axes, summary, state)
    return attend(q, k, v, log_decay, own, segment_ids)[0], last


def _from_all(axes: MeshAxes, summary: Summary, state: Memory) -> tuple[Memory, Memory]:
    """The memory before this device's tokens and the one after those of the last device."""
    summaries = jax.lax.all_gather(summary, axes)
    start = state, jnp.zeros_like(summary.last)
    (last, _), before = jax.lax.scan(_pass, start, summaries)
    return before[jax.lax.axis_index(axes)], last


def _from_neighbour(axes: MeshAxes, summary: Summary, state: Memory) -> tuple[Memory, Memory]:
    """As `_from_all`, where no part but the last lets an older memory through."""
    here, last = jax.lax.axis_index(axes), parts(axes) - 1
    onward = [(device, device + 1) for device in range(last)]
    # The first device receives zeros: an empty memory, and no open document.
    written, document = jax.lax.ppermute((summary.written, summary.last), axes, onward)
    (after, _), own = _pass((jnp.where(here == 0, state, written), document), summary)
    return own, jax.lax.psum(jnp.where(here == last, after, 0.0), axes)


def _is_forgotten(axes: MeshAxes, across: Float[Array, "B N"]) -> Bool[Array, ""]:
    """Whether no part but the last, of any row and head, lets more than FORGOTTEN of a memory through."""
    is_last = jax.lax.axis_index(axes) == parts(axes) - 1
    # All devices of the mesh must take the same way: collectives lie on both.
    most = jax.lax.pmax(jnp.where(is_last, 0.0, jnp.max(across)), everywhere())
    return most <= FORGOTTEN


def _summary(
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    segment_ids: Int[Array, "B T"],
) -> Summary:
    real, starts = documents.is_real(segment_ids), documents.starts_document(segment_ids)
    document, count = (jnp.cumsum(x, axis=1, dtype=jnp.int32) for x in (starts, real))
    kept = real & (document == document[:, -1:])  # still in the memory after the last token
    leaving = jnp.exp((count[:, -1:] - count)[..., None] * log_decay[None, None])
    k32, v32 = (jnp.where(kept[..., None, None], x, 0).astype(jnp.float32) for x in (k, v))
    across = jnp.where(document[:, -1:] == 0, jnp.exp(count[:, -1:] * log_decay[None]), 0.0)
    places = jnp.argmax(real, axis=1), real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    ends = (jnp.take_along_axis(segment_ids, x[:, None], axis=1)[:, 0] for x in places)
    return Summary(product("btnk,btnv->bnkv", leaving[..., None] * k32, v32), across, *ends)


def _pass(
    before: tuple[Float[Array, "B N H H"], Int[Array, "B"]], part: Summary
) -> tuple[tuple[Float[Array, "B N H H"], Int[Array, "B"]], Float[Array, "B N H H"]]:
    """From (memory, open document) before a part to those after it, and the memory it begins with."""
    memory, document = before
    goes_on = (part.first == document) | (part.first == 0) | (document == 0)
    memory = jnp.where(goes_on[:, None, None, None], memory, 0.0)
    after = part.across[..., None, None] * memory + part.written
    return (after, jnp.where(part.last == 0, document, part.last)), memory
