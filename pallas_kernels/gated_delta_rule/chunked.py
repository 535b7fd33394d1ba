"""The gated delta rule in chunks: corrections within a chunk are one triangular system, and one state is passed on."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.gated_delta_rule.pairs import inverse, pairs
from pallas_kernels.gated_delta_rule.reference import Operands, Results
from pallas_kernels.lightning_attention.chunked import in_chunks
from pallas_kernels.products import product


def chunked(operands: Operands, *, scale: float) -> Results:
    """For a chunk with state S before it, K and Q its keys and queries as they meet S, K' as they leave the chunk:

    U = (1 + A)^-1 beta (V - K S), A_ij = beta_i k_i decay(j, i) k_j for j < i
    o = scale * (Q S + B U), B_ij = q_i decay(j, i) k_j for j <= i ;  S' = across * S + K'^T U
    """
    length, state = operands.q.shape[1], operands.state
    chunk = min(chunk_size(), 1 << (length - 1).bit_length())
    q, k, v, log_decay, beta, *_ = operands.without_segments()
    tokens = [in_chunks(x, chunk) for x in (q, k, v, log_decay, beta[..., None])]
    shape = tokens[0].shape[:3]  # B M N
    q, k, v, log_decay, beta = (x.reshape(-1, *x.shape[3:]) for x in tokens)
    keys, queries, entering, leaving = pairs(q, k, log_decay)

    solve = inverse(jnp.tri(chunk, k=-1)[None] * (beta * keys))
    new = product("gij,gjw->giw", solve, beta * v)
    old = product("gij,gjh->gih", solve, beta * k * entering)
    last_keys, across = (jnp.swapaxes(x, 1, 2) for x in (k * leaving, entering[:, -1:]))

    def step(state, part):
        new, old, last_keys, across = part
        written = new - product("bnih,bnhw->bniw", old, state)
        after = across * state + product("bnhi,bniw->bnhw", last_keys, written)
        return after, (state, written)

    parts = (x.reshape(*shape, *x.shape[1:]) for x in (new, old, last_keys, across))
    last, results = jax.lax.scan(step, state, tuple(jnp.swapaxes(x, 0, 1) for x in parts))
    before, written = (jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:]) for x in results)
    inside = product("gij,gjw->giw", scale * queries, written)
    carried = product("gih,ghw->giw", scale * q * entering, before)
    out = jnp.swapaxes((inside + carried).reshape(*shape, chunk, -1), 2, 3)
    out = out.reshape(shape[0], -1, *operands.v.shape[2:])
    return out[:, :length].astype(operands.q.dtype), last


def chunk_size() -> int:
    """Tokens per chunk, a power of 2: a CPU pays for every product within one."""
    return 32 if dispatch.platform() == "cpu" else 64
