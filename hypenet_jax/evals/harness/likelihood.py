"""How likely given tokens are after given contexts, and whether they are what greedy decoding would write."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Mask, Params, Tokens
from hypenet_jax.evals.language.chunked_forward import hidden_parts
from hypenet_jax.evals.language.predictions import BLOCK
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import (
    TOKENS_PER_BATCH,
    TokenRow,
    batches_by_width,
    power_of_two,
)
from hypenet_jax.generation.model import Model
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


def likelihoods(
    model: EvalModel, request: LikelihoodRequest, *, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Index of a row, and (log p in nats, are all counted tokens the likeliest), as batches end.

    Raises:
      MemoryError: see `check_memory`.
    """
    lengths = [len(row) - 1 for row in request.rows]
    for batch in batches_by_width(lengths, tokens_per_batch):
        tokens, segment_ids = batch.stack([row[:-1] for row in request.rows])
        labels, _ = batch.stack([row[1:] for row in request.rows])
        counts = np.asarray([request.counted[row] for row in batch.order])
        counted = np.arange(batch.width) >= batch.width - counts[:, None]
        log_p, greedy = np.zeros(batch.size, np.float32), np.ones(batch.size, bool)
        for start, hidden in hidden_parts(model, tokens, 0, segment_ids):
            part = np.s_[:, start : start + hidden.shape[1]]
            score = _score(model.decoder, model.params, hidden, labels[part], counted[part])
            log_p, greedy = log_p + np.asarray(score[0]), greedy & np.asarray(score[1])
        for i, row in enumerate(batch.rows):
            yield row, (float(log_p[i]), bool(greedy[i]))


@functools.partial(jax.jit, static_argnums=0)
def _score(
    decoder: Model, params: Params, hidden: Hidden, labels: Tokens, counted: Mask
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Sum of log p over the counted labels, and whether each of them is the likeliest token.

    Logits exist for a block of positions at a time, and only where something counts.
    """
    batch, time = labels.shape
    size = min(time, power_of_two(max(1, BLOCK // batch)))
    nothing = (jnp.zeros((batch,), jnp.float32), jnp.ones((batch,), bool))

    def score(xs: tuple[Hidden, Tokens, Mask]) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
        hidden, labels, counted = xs
        logits = decoder.apply({"params": params}, hidden, method="logits")
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        log_p = jnp.where(counted, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        greedy = (jnp.argmax(logits, axis=-1) == labels) | ~counted
        return jnp.sum(log_p, axis=1), jnp.all(greedy, axis=1)

    blocks = [
        jnp.moveaxis(x.reshape(batch, time // size, size, *x.shape[2:]), 1, 0)
        for x in (hidden, *(constrain(x, (axes.BATCH, axes.TIME)) for x in (labels, counted)))
    ]
    log_p, greedy = jax.lax.map(
        lambda xs: jax.lax.cond(jnp.any(xs[2]), score, lambda _: nothing, xs), tuple(blocks)
    )
    return constrain(jnp.sum(log_p, axis=0), (None,)), constrain(jnp.all(greedy, axis=0), (None,))
