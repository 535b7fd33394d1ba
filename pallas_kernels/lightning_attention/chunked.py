"""Lightning attention in chunks: products inside a chunk, and one state from chunk to chunk, passed
on one by one or joined in a tree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.lightning_attention import segments
from pallas_kernels.lightning_attention.reference import Operands, Results, State
from pallas_kernels.lightning_attention.segments import NEVER, Steps
from pallas_kernels.products import product

# By how much the state decays across each chunk, and what each adds to it; as in `segments.Steps`, R is B or 1.
Across = Float[Array, "R M N 1 1"]
Added = Float[Array, "B M N H H"]
Prefix = Callable[[Across, Added, State], tuple[Added, State]]


def scan_prefix(across: Across, added: Added, state: State) -> tuple[Added, State]:
    """State before each chunk and after the last one, chunk by chunk."""

    def step(state, chunk):
        factor, new = chunk
        return factor * state + new, state

    chunks = jnp.swapaxes(across, 0, 1), jnp.swapaxes(added, 0, 1)
    last, before = jax.lax.scan(step, state, chunks)
    return jnp.swapaxes(before, 0, 1), last


def tree_prefix(across: Across, added: Added, state: State) -> tuple[Added, State]:
    """The same in log2 of the chunks many steps; (a, U) then (b, W) is (a b, b U + W)."""

    def join(earlier, later):
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    factor, total = jax.lax.associative_scan(join, (across, added), axis=1)
    after = factor * state[:, None] + total
    return jnp.concatenate([state[:, None], after[:, :-1]], axis=1), after[:, -1]


def chunked(operands: Operands, *, scale: float, prefix: Prefix = scan_prefix) -> Results:
    """Outputs and last state, with the states before each chunk found by `prefix`.

    For chunk m:  o = scale * ((q k^T * within) v + entering * (q S_m))
                  S_(m+1) = across * S_m + (k^T * leaving) v
    """
    q, k, v, log_decay, state, segment_ids = operands
    length, chunk = q.shape[1], min(chunk_size(q.shape[3]), q.shape[1])
    if segment_ids is None:
        steps = segments.steps_of_one_segment(length, chunk)
    else:
        steps = segments.steps_of_segments(segment_ids, chunk)
        real = segments.is_real(segment_ids)[..., None, None]
        q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
    within, entering, leaving, across = _decays(log_decay, steps)
    q, k, v = (in_chunks(x, chunk) for x in (q, k, v))
    # Turned once for both of its products: a CPU multiplies small matrices 1.4 times as fast so.
    keys = jnp.swapaxes(k, -1, -2)

    added = product("bmnhc,bmncv->bmnhv", keys * leaving[..., None, :], v)
    before, last = prefix(across[..., None], added, state)
    scores = product("bmnih,bmnhj->bmnij", scale * q, keys) * within
    inside = product("bmnij,bmnjv->bmniv", scores, v)
    carried = product("bmnih,bmnhv->bmniv", scale * q, before) * entering[..., None]
    out = jnp.swapaxes(inside + carried, 2, 3).reshape(q.shape[0], -1, *operands.q.shape[2:])
    return out[:, :length].astype(operands.q.dtype), last


def associative(operands: Operands, *, scale: float) -> Results:
    """The same, with states joined in a tree."""
    return chunked(operands, scale=scale, prefix=tree_prefix)


def chunk_size(width: int) -> int:
    """Tokens per chunk: wide matrix units want more of them, a CPU about as many as a head is
    wide."""
    if dispatch.platform() != "cpu":
        return 128
    return 32 if width <= 32 else 64


def _decays(log_decay: Float[Array, "N"], steps: Steps) -> list[Float[Array, "_ _ N ..."]]:
    """Factors on what goes from token j to token i of a chunk [R M N i j], and over the other steps."""
    ordinal, segment = steps[:2]
    causal = jnp.tri(ordinal.shape[-1], dtype=bool)[None, None]
    seen = causal & (segment[..., :, None] == segment[..., None, :])
    within = jnp.where(seen, ordinal[..., :, None] - ordinal[..., None, :], NEVER)
    heads = log_decay[None, None, :, None]
    others = (segments.decay_factor(heads, x[:, :, None]) for x in steps[2:])
    return [segments.decay_factor(heads[..., None], within[:, :, None]), *others]


def in_chunks(x: Float[Array, "B T N H"], chunk: int) -> Float[Array, "B M N C H"]:
    """float32, the last chunk filled up with zeros."""
    batch, length, heads, width = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -length % chunk), (0, 0), (0, 0)))
    return jnp.swapaxes(x.reshape(batch, -1, chunk, heads, width), 2, 3)
