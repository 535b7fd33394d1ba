"""What models predict of given tokens: losses, and whether tokens are the likeliest; never all logits at once."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Mask, Params, SegmentIds, Tokens
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import (
    TOKENS_PER_BATCH,
    TokenRow,
    batches_by_width,
    power_of_two,
)
from hypenet_jax.generation.model import Model, check_memory
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state, output_head
from hypenet_jax.sharding import constrain, mesh_axes
from pallas_kernels import MeshAxes, linear_cross_entropy

# Rows up to this length are one pass; longer ones are read in parts of it, so that activations stay bounded.
READ_PART = 4096
# Logits of this many tokens at once.
BLOCK = 256


def final_losses(
    model: EvalModel,
    rows: Int[np.ndarray, "R T"],
    num_targets: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[np.ndarray, "R W"]:
    """-log p of the last `num_targets` tokens of each row, in nats, float64; no other logits are formed."""
    width = rows.shape[1]
    batches = batches_by_width([width] * len(rows), tokens_per_batch, width=width)
    parts = [
        token_losses(model, rows[batch.order], width - num_targets)[: len(batch.rows)]
        for batch in batches
    ]
    return np.concatenate(parts)


def token_losses(
    model: EvalModel, rows: Int[np.ndarray, "B T"], first: int = 1
) -> Float[np.ndarray, "B W"]:
    """-log p of the tokens at positions `first` .. T - 1 of each row, in nats, float64; `first` is at least 1."""
    head = output_head(model.params, model.decoder.config)
    labels = np.pad(rows[:, 1:], ((0, 0), (0, 1)))
    parts = [
        np.asarray(_losses(head, hidden, labels[:, start : start + hidden.shape[1]]))
        for start, hidden in hidden_parts(model, rows, first - 1)
    ]
    # Nothing is known to follow the last token.
    return np.concatenate(parts, axis=1)[:, :-1].astype(np.float64)


def final_hits(
    model: EvalModel,
    rows: Int[np.ndarray, "R T"],
    counted: Sequence[int],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[np.ndarray, " R"]:
    """1 for each row whose last `counted` tokens are all the likeliest, those before them given; else 0.

    NaN where the model computes NaN.
    """
    width = rows.shape[1] - 1
    found = likelihoods(model, [*rows], counted, width=width, tokens_per_batch=tokens_per_batch)
    return np.asarray([np.nan if np.isnan(p) else float(hit) for _, (p, hit) in sorted(found)])


def likelihoods(
    model: EvalModel,
    rows: Sequence[TokenRow],
    counted: Sequence[int],
    *,
    width: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """log p of the last `counted[i]` tokens of `rows[i]` given those before them, and whether all are the likeliest.

    Args:
      rows: token ids, at least two each.
      counted: less than the length of the row; where none is counted, the answer is (0, True).
      width: of rows that all have width + 1 tokens; None: of any lengths, padded to powers of two.
    Yields:
      Index of a row, and (log p in nats, all likeliest), as batches end.
    Raises:
      MemoryError: see `check_memory`.
    """
    inputs, targets = [row[:-1] for row in rows], [row[1:] for row in rows]
    first = 0 if width is None else width - max(counted)
    lengths = [len(row) for row in inputs]
    for batch in batches_by_width(lengths, tokens_per_batch, width=width):
        tokens, segment_ids = batch.stack(inputs)
        labels, _ = batch.stack(targets)
        counts = np.asarray([counted[row] for row in batch.order])
        mask = np.arange(batch.width) >= batch.width - counts[:, None]
        log_p, greedy = np.zeros(batch.size), np.ones(batch.size, bool)
        padding = segment_ids if width is None else None
        for start, hidden in hidden_parts(model, tokens, first, padding):
            part = np.s_[:, start : start + hidden.shape[1]]
            scores = token_scores(model.decoder, model.params, hidden, labels[part], mask[part])
            log_p += np.asarray(scores[0]).sum(axis=1)
            greedy &= np.asarray(scores[1]).all(axis=1)
        for i, row in enumerate(batch.rows):
            yield row, (float(log_p[i]), bool(greedy[i]))


@functools.partial(jax.jit, static_argnums=0)
def token_scores(
    decoder: Model, params: Params, hidden: Hidden, labels: Tokens, counted: Mask
) -> tuple[Float[Array, "B T"], Mask]:
    """log p of every label that counts, and whether it is the likeliest token; 0 and True of the others.

    Logits exist for a block of positions at a time, and only where something counts.
    """
    batch, time = labels.shape
    size = min(time, power_of_two(max(1, BLOCK // batch)))

    def score(block: tuple[Hidden, Tokens, Mask]) -> tuple[Float[Array, "B C"], Mask]:
        hidden, labels, counted = block
        logits = decoder.apply({"params": params}, hidden, method="logits")
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        log_p = jnp.where(counted, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        return log_p, (jnp.argmax(logits, axis=-1) == labels) | ~counted

    def blocks_of(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -time % size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    nothing = jnp.zeros((batch, size), jnp.float32), jnp.ones((batch, size), bool)
    labels, counted = (constrain(x, (axes.BATCH, axes.TIME)) for x in (labels, counted))
    scores = jax.lax.map(
        lambda block: jax.lax.cond(jnp.any(block[2]), score, lambda _: nothing, block),
        tuple(map(blocks_of, (hidden, labels, counted))),
    )
    joined = (jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :time] for x in scores)
    log_p, likeliest = (constrain(x, (None, None)) for x in joined)
    return log_p, likeliest


@jax.jit
def _losses(head: Float[Array, "V D"], hidden: Hidden, labels: Tokens) -> Float[Array, "B T"]:
    batch, time = labels.shape
    _, losses = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        head,
        labels.reshape(-1),
        jnp.ones(labels.size, jnp.float32),
        mesh_axes=MeshAxes(
            batch=mesh_axes(axes.BATCH, batch),
            sequence=mesh_axes(axes.TIME, time),
            vocabulary=mesh_axes(axes.VOCAB, len(head)),
        ),
    )
    return constrain(losses.reshape(labels.shape), (None, None))


def hidden_parts(
    model: EvalModel,
    tokens: Int[np.ndarray, "B T"],
    first: int = 0,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
) -> Iterator[tuple[int, Hidden]]:
    """Hidden states of positions first .. T - 1, in order, in parts of at most READ_PART positions.

    Positions before `first` are read and not handed out; parts of padding alone are skipped. Memory: the activations of
    one part and the decode state of the rows, which holds what a part needs of the earlier ones. What only stands in
    for a decoder has no such state and reads rows whole.

    Args:
      segment_ids: 0 for padding; None where there is none.
    Yields:
      Position of the part's first token, and the part's hidden states.
    Raises:
      MemoryError: see `check_memory`.
    """
    length = tokens.shape[1]
    if length <= READ_PART or not isinstance(model.decoder, Decoder):
        yield first, _forward(model.decoder, model.params, None, tokens, segment_ids, first)[0]
        return
    check_memory(model.decoder, len(tokens), length)
    single = model.with_single_layers()
    state = _empty(single.decoder, len(tokens), length)
    starts = (*range(0, first, READ_PART), *range(first, length, READ_PART))
    for start, stop in itertools.pairwise((*starts, length)):
        part = np.s_[:, start:stop]
        real = None if segment_ids is None else segment_ids[part]
        if real is not None and not real.any():
            continue
        hidden, state = _forward(single.decoder, single.params, state, tokens[part], real, 0)
        if start >= first:
            yield start, hidden


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(decoder: Model, batch: int, capacity: int) -> DecodeState:
    """Compiled, so that it lies where the mesh is and not on this process's first device."""
    return decode_state(decoder.config, batch, capacity, decoder.dtype)


@functools.partial(jax.jit, static_argnums=(0, 5), donate_argnums=2)
def _forward(
    decoder: Model,
    params: Params,
    state: DecodeState | None,
    tokens: Tokens,
    segment_ids: SegmentIds | None,
    first: int,
) -> tuple[Float[Array, "B W D"], DecodeState | None]:
    """Hidden states of positions `first` .. T - 1, and the state after them if one was given."""
    tokens = constrain(tokens, (axes.BATCH, axes.TIME))
    read = {} if state is None else {"state": state}  # not everything that is swept has one
    output = decoder.apply({"params": params}, tokens, segment_ids=segment_ids, **read)
    return output.hidden[:, first:], output.state
