"""Lightning attention on a mesh that shards the batch, the sequence and the heads.

Rows and heads are independent. Along a sharded sequence each device first computes the state that its own tokens add
up to, [B, N, H, H] float32 whatever their number; only these are exchanged, and from them every device computes the
state that its own tokens start from: from those of all devices, or inside `neighbor_exchange` from its neighbor's.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.lightning_attention import segments
from pallas_kernels.lightning_attention.reference import Operands, Results, State
from pallas_kernels.lightning_attention.segments import Ends
from pallas_kernels.mesh import AxisNames, MeshAxes, manual_axes, num_shards, on_each_device
from pallas_kernels.products import product

Attend = Callable[[Operands], Results]
Open = tuple[State, Int[Array, "B"]]  # a state, and the id of the segment that it is of

NEGLIGIBLE_DECAY = 2.0**-24
"""Factor on a state below which `neighbor_exchange` drops it: less than float32 rounds off beside the whole."""

# Part of what `jax.jit` caches by: a function traced inside and outside is traced twice.
_neighbors_only = jax.make_user_context(False)


class Summary(NamedTuple):
    """One device's tokens of every row, as far as the tokens after them can tell."""

    state: State  # after the tokens, from a zero state
    decay: Float[Array, "B N"]  # factor on the state before them; 0 where a segment starts inside
    ends: Ends


@contextlib.contextmanager
def neighbor_exchange() -> Iterator[None]:
    """Inside, a device sends its state to the next one alone, where its tokens decay older ones enough.

    Left out of the state m_i that device i starts from is exp(log_decay * n) m_(i-1), n the real tokens of the device
    before: at most NEGLIGIBLE_DECAY of the older state, per head and number. Where the tokens of some device but the
    last decay less, for they are few or have much padding, that call exchanges all states.
    """
    with _neighbors_only(True):
        yield


def on_mesh(attend: Attend, axes: MeshAxes) -> Attend:
    """`attend` on every device's own shards; the function itself where nothing is sharded."""
    local = attend
    if num_shards(axes.sequence) > 1:
        local = functools.partial(_own_tokens, attend, axes.sequence)
    tokens, state = axes.spec("B T N"), axes.spec("B N")
    specs = Operands(tokens, tokens, tokens, axes.spec("N"), state, axes.spec("B T"))
    return on_each_device(local, (specs,), (tokens, state))


def _own_tokens(attend: Attend, axes: AxisNames, operands: Operands) -> Results:
    """Outputs of this device's tokens, and the state after those of the last device."""
    q, k, v, log_decay, state, segment_ids = operands
    ids = jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids
    summary = _summary(k, v, log_decay, ids)
    if _neighbors_only.value:
        negligible = _is_negligible(axes, summary.decay)
        near, far = (functools.partial(way, axes) for way in (_from_neighbor, _from_all))
        own, last = jax.lax.cond(negligible, near, far, summary, state)
    else:
        own, last = _from_all(axes, summary, state)
    return attend(operands._replace(state=own))[0], last


def _from_all(axes: AxisNames, summary: Summary, state: State) -> tuple[State, State]:
    """The state before this device's tokens and the one after those of the last device."""
    summaries = jax.lax.all_gather(summary, axes)
    start = state, jnp.zeros_like(summary.ends.last)
    (last, _), before = jax.lax.scan(_advance, start, summaries)
    return before[jax.lax.axis_index(axes)], last


def _from_neighbor(axes: AxisNames, summary: Summary, state: State) -> tuple[State, State]:
    """As `_from_all`, where no device but the last passes an older state on."""
    device, last = jax.lax.axis_index(axes), num_shards(axes) - 1
    onward = [(i, i + 1) for i in range(last)]
    # The first device receives zeros: a zero state, and no segment.
    received, open_id = jax.lax.ppermute((summary.state, summary.ends.last), axes, onward)
    (after, _), own = _advance((jnp.where(device == 0, state, received), open_id), summary)
    return own, jax.lax.psum(jnp.where(device == last, after, 0.0), axes)


def _is_negligible(axes: AxisNames, decay: Float[Array, "B N"]) -> Bool[Array, ""]:
    """Whether no device but the last, for any row and head, keeps more than NEGLIGIBLE_DECAY of a state."""
    is_last = jax.lax.axis_index(axes) == num_shards(axes) - 1
    # All devices of the mesh must take the same branch: both contain collectives.
    largest = jax.lax.pmax(jnp.where(is_last, 0.0, jnp.max(decay)), manual_axes())
    return largest <= NEGLIGIBLE_DECAY


def _summary(
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    log_decay: Float[Array, "N"],
    segment_ids: Int[Array, "B T"],
) -> Summary:
    steps = segments.steps_of_segments(segment_ids, segment_ids.shape[1])  # in one chunk
    leaving, across = steps.leaving[:, 0, :, None], steps.across[:, 0]
    k32, v32 = (jnp.where(leaving[..., None] < 0, 0, x).astype(jnp.float32) for x in (k, v))
    k32 *= segments.decay_factor(log_decay[None, None], leaving)[..., None]
    decay = segments.decay_factor(log_decay[None], across)
    return Summary(product("btnk,btnv->bnkv", k32, v32), decay, segments.ends(segment_ids))


def _advance(before: Open, summary: Summary) -> tuple[Open, State]:
    """From what is before some tokens to what is after them, and the state they start from."""
    state, open_id = segments.carried(*before, summary.ends)
    return (summary.decay[..., None, None] * state + summary.state, open_id), state
