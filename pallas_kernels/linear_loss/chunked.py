"""The losses in chunks of tokens: XLA, on any device."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.linear_loss import divergences, loop, per_token, sharded
from pallas_kernels.linear_loss.reference import Heads, Loss, Settings, Tokens
from pallas_kernels.products import product

# Float32 logits of one chunk, in bytes, unless that would be fewer tokens: every chunk reads the head
# twice and adds to all of its gradient, which fewer tokens would not outweigh.
CHUNK_BYTES = {"cpu": 2**25, "gpu": 2**30, "tpu": 2**28}
LEAST_TOKENS = 256

# Logits of a chunk, its tokens, the heads -> losses per token, gradient of their weighted sum by logit.
PerToken = Callable[
    [Settings, Float[Array, "C V"], Tokens, Heads], tuple[Float[Array, "C *n"], Float[Array, "C V"]]
]


def cross_entropy(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_cross_entropy`."""
    return loop.loss(functools.partial(_chunks, per_token.cross_entropy), settings, tokens, heads)


def kl(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl`."""
    return loop.loss(functools.partial(_chunks, per_token.kl), settings, tokens, heads)


def kl_top_k(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_kl_top_k`."""
    return loop.loss(functools.partial(_chunks, per_token.kl_top_k), settings, tokens, heads)


def distillation(settings: Settings, tokens: Tokens, heads: Heads) -> Loss:
    """As `linear_distillation`."""
    return loop.loss(functools.partial(_chunks, divergences.distillation), settings, tokens, heads)


def _chunks(function: PerToken, settings: Settings, tokens: Tokens, heads: Heads) -> loop.Chunks:
    matrix = heads.student.astype(tokens.hidden.dtype)

    def step(tokens, d_head):
        hidden = tokens.hidden
        values = product("td,vd->tv", hidden, matrix)
        token_loss, d_logits = function(settings, values, tokens, heads)
        if d_head is None:
            return token_loss, None, None
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = sharded.summed(product("tv,vd->td", d_logits, matrix), settings.axes.vocabulary)
        d_head = d_head + product("tv,td->vd", d_logits, hidden)
        return token_loss, d_hidden.astype(hidden.dtype), d_head

    length = len(tokens.hidden)
    fitting = CHUNK_BYTES[dispatch.platform()] // (4 * len(matrix)) // 8 * 8
    count = -(-length // max(LEAST_TOKENS, fitting))
    return loop.Chunks(size=-(-length // count), dealt=True, step=step)
