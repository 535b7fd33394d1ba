"""The gated delta rule on a mesh that shards the batch, the sequence and the heads.

Rows and heads are independent. Along a sharded sequence, what a device's tokens make of the state before them is
S' = kept S + written; only these two are exchanged, [H, H + W] float32 of every head, and from them every device
computes the state that its own tokens start from.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.gated_delta_rule.reference import Operands, Results, State
from pallas_kernels.lightning_attention import segments
from pallas_kernels.lightning_attention.segments import Ends
from pallas_kernels.mesh import AxisNames, MeshAxes, num_shards, on_each_device
from pallas_kernels.products import product

Attend = Callable[[Operands], Results]
Open = tuple[State, Int[Array, "B"]]  # a state, and the id of the segment that it is of


class Summary(NamedTuple):
    """One device's tokens of every row, as far as the tokens after them can tell."""

    written: State  # after the tokens, from a zero state
    kept: Float[Array, "B N H H"]  # of the state before them; 0 where a segment starts inside
    ends: Ends


def on_mesh(attend: Attend, axes: MeshAxes) -> Attend:
    """`attend` on every device's own shards; the function itself where nothing is sharded."""
    local = attend
    if num_shards(axes.sequence) > 1:
        local = functools.partial(_own_tokens, attend, axes.sequence)
    tokens, state = axes.spec("B T N"), axes.spec("B N")
    specs = Operands(tokens, tokens, tokens, tokens, tokens, state, axes.spec("B T"))
    return on_each_device(local, (specs,), (tokens, state))


def _own_tokens(attend: Attend, axes: AxisNames, operands: Operands) -> Results:
    """Outputs of this device's tokens, and the state after those of the last device."""
    summaries = jax.lax.all_gather(_summary(attend, operands), axes)
    start = operands.state, jnp.zeros_like(summaries.ends.last[0])
    (last, _), before = jax.lax.scan(_advance, start, summaries)
    own = operands._replace(state=before[jax.lax.axis_index(axes)])
    return attend(own)[0], last


def _summary(attend: Attend, operands: Operands) -> Summary:
    """The recurrence of two states side by side: zeros with the values, and an identity without."""
    v, state, ids = operands.v, operands.state, operands.segment_ids
    ids = jnp.ones(v.shape[:2], jnp.int32) if ids is None else ids
    width, size = state.shape[2], state.shape[3]
    identity = jnp.broadcast_to(jnp.eye(width, dtype=state.dtype), (*state.shape[:2], width, width))
    both = operands._replace(
        v=jnp.concatenate([v, jnp.zeros((*v.shape[:3], width), v.dtype)], axis=3),
        state=jnp.concatenate([jnp.zeros_like(state), identity], axis=3),
    )
    after = attend(both)[1]
    return Summary(after[..., :size], after[..., size:], segments.ends(ids))


def _advance(before: Open, summary: Summary) -> tuple[Open, State]:
    """From what is before some tokens to what is after them, and the state they start from."""
    state, open_id = segments.carried(*before, summary.ends)
    after = product("bnkh,bnhw->bnkw", summary.kept, state) + summary.written
    return (after, open_id), state
