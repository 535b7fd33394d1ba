"""How likely given tokens are after given contexts, and whether they are what greedy decoding would write."""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Mask, Params, SegmentIds, Tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.evals.predictions import BLOCK
from hypenet_jax.generation.batching import (
    TOKENS_PER_BATCH,
    Batch,
    TokenRow,
    batches_by_width,
    power_of_two,
)
from hypenet_jax.generation.model import Model
from hypenet_jax.generation.prefill import PREFILL_PART
from hypenet_jax.model.decoder import DecodeState, decode_state
from hypenet_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class LikelihoodRequest:
    """Asks for log p of the last `counted[i]` tokens of `rows[i]`, given those before them.

    Attributes:
      rows: token ids, at least two each.
      counted: less than the length of the row; where none is counted, the response is (0, True).
    """

    rows: tuple[TokenRow, ...]
    counted: tuple[int, ...]


# Neither is checked at construction: tree functions build them of other leaves.
@typing.no_type_check
@flax.struct.dataclass
class _Targets:
    """Tokens, 0 where they are padding in `real`, what follows each of them, and where that counts."""

    tokens: Tokens
    real: SegmentIds
    labels: Tokens
    counted: Mask


@typing.no_type_check
@flax.struct.dataclass
class _Score:
    """Sum of log p over the counted labels, and whether each of them is the likeliest token."""

    log_p: Float[Array, "B"]
    greedy: Bool[Array, "B"]


def likelihoods(
    model: EvalModel,
    request: LikelihoodRequest,
    *,
    part: int = PREFILL_PART,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Index of a row, and (log p in nats, are all counted tokens the likeliest), as batches end.

    Args:
      model: with single layers, unless no row is longer than a part.
      part: longer rows are read in parts of it, a power of two, so that activations stay bounded.
    """
    lengths = [len(row) - 1 for row in request.rows]
    for batch in batches_by_width(lengths, tokens_per_batch):
        score = _score(model.decoder, model.params, _stack(request, batch), part)
        log_p, greedy = np.asarray(score.log_p), np.asarray(score.greedy)
        for i, row in enumerate(batch.rows):
            yield row, (float(log_p[i]), bool(greedy[i]))


def _stack(request: LikelihoodRequest, batch: Batch) -> _Targets:
    """The rows of a batch; in a filler nothing counts."""
    tokens, real = batch.stack([row[:-1] for row in request.rows])
    labels, _ = batch.stack([row[1:] for row in request.rows])
    counts = np.zeros((batch.size, 1), np.int32)
    counts[: len(batch.rows), 0] = [request.counted[row] for row in batch.rows]
    return cast(Any, _Targets)(tokens, real, labels, np.arange(batch.width) >= batch.width - counts)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(decoder: Model, params: Params, targets: _Targets, part: int) -> _Score:
    targets = jax.tree.map(lambda x: constrain(x, (axes.BATCH, axes.TIME)), targets)
    batch, time = targets.tokens.shape
    if time <= part:
        output = decoder.apply({"params": params}, targets.tokens, segment_ids=targets.real)
        return _replicated(_score_of(decoder, params, output.hidden, targets))

    def add(i: Int[Array, ""], carry: tuple[DecodeState, _Score]) -> tuple[DecodeState, _Score]:
        state, score = carry
        cut = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * part, part, 1), targets)
        output = decoder.apply({"params": params}, cut.tokens, segment_ids=cut.real, state=state)
        more = _score_of(decoder, params, output.hidden, cut)
        return output.state, _Score(score.log_p + more.log_p, score.greedy & more.greedy)

    state = decode_state(decoder.config, batch, time, decoder.dtype)
    # Parts of padding are skipped.
    first = jnp.argmax(jnp.any(targets.real != 0, axis=0)) // part
    _, score = jax.lax.fori_loop(first, time // part, add, (state, _nothing(batch)))
    return _replicated(score)


def _score_of(decoder: Model, params: Params, hidden: Hidden, targets: _Targets) -> _Score:
    """Logits exist for a block of positions at a time, and only where something counts."""
    batch, time = targets.labels.shape
    size = min(time, power_of_two(max(1, BLOCK // batch)))

    def block(xs: tuple[Hidden, Tokens, Mask]) -> _Score:
        hidden, labels, counted = xs

        def score() -> _Score:
            logits = decoder.apply({"params": params}, hidden, method="logits")
            chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            log_p = jnp.where(counted, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
            greedy = (jnp.argmax(logits, axis=-1) == labels) | ~counted
            return _Score(jnp.sum(log_p, axis=1), jnp.all(greedy, axis=1))

        return jax.lax.cond(jnp.any(counted), score, lambda: _nothing(batch))

    blocks = [
        jnp.moveaxis(x.reshape(batch, time // size, size, *x.shape[2:]), 1, 0)
        for x in (hidden, targets.labels, targets.counted)
    ]
    scores = jax.lax.map(block, tuple(blocks))
    return _Score(jnp.sum(scores.log_p, axis=0), jnp.all(scores.greedy, axis=0))


def _nothing(batch: int) -> _Score:
    return _Score(jnp.zeros((batch,), jnp.float32), jnp.ones((batch,), bool))


def _replicated(score: _Score) -> _Score:
    return jax.tree.map(lambda x: constrain(x, (None,)), score)
