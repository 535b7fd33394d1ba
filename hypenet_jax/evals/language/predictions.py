"""What a model predicts, token by token: losses of given tokens, and the likeliest ones; never all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Params, Tokens
from hypenet_jax.evals.language.chunked_forward import hidden_parts
from hypenet_jax.evals.model import EvalModel
from hypenet_jax.generation.batching import TOKENS_PER_BATCH, batches_of
from hypenet_jax.generation.model import Model
from hypenet_jax.model.decoder import output_head
from hypenet_jax.sharding import constrain, mesh_axes
from pallas_kernels import MeshAxes, linear_cross_entropy

# Logits of this many tokens at once.
BLOCK = 256


def final_losses(
    model: EvalModel,
    rows: Int[np.ndarray, "R T"],
    num_targets: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[np.ndarray, "R W"]:
    """-log p of the last `num_targets` tokens of each row, in nats, float64; no other logits are formed."""
    parts = [
        token_losses(model, batch, batch.shape[1] - num_targets)[:real]
        for batch, real in batches_of(rows, tokens_per_batch)
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


def top_tokens(decoder: Model, params: Params, hidden: Hidden) -> Tokens:
    """The likeliest next token after each position; logits exist for a block of tokens at a time."""
    batch, time, width = hidden.shape
    flat = hidden.reshape(-1, width)
    size = min(BLOCK, batch * time)
    blocks = jnp.pad(flat, ((0, -len(flat) % size), (0, 0))).reshape(-1, 1, size, width)

    def best(block):
        logits = decoder.apply({"params": params}, block, method="logits")
        return jnp.argmax(logits[0], axis=-1).astype(jnp.int32)

    return jax.lax.map(best, blocks).reshape(-1)[: batch * time].reshape(batch, time)
