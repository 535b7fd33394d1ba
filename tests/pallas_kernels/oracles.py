"""Definitions in float64, written from the sums themselves; how far results are from them, and whose they may be."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}
PLAIN = ("reference", "recurrent", "dense", "chunked")
"""Definitions, and the forms that run on every device."""


def each(names: Iterable[str]) -> list[Any]:
    """Implementations to parametrize a test with; those that are not plain, kernels above all, are extended."""
    return [_case(name, name) for name in names]


def each_of(tables: dict[str, dict[str, Any]]) -> list[Any]:
    """The same of several ops: their names, and their implementations by name."""
    return [_case(name, op, name) for op, names in tables.items() for name in names]


def _case(name: str, *values: str) -> Any:
    return pytest.param(*values, marks=() if name in PLAIN else pytest.mark.extended)


def with_gradients(function, *arrays):
    """Outputs of a function, and the gradients of `scalar` of them."""

    def loss(*arrays):
        out = function(*arrays)
        return scalar(out), out

    gradients, out = jax.jit(jax.grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
    return out, gradients


def value_and_gradients(function, *arrays):
    """The same in float64."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
        return jax.tree.map(np.asarray, with_gradients(function, *arrays))


def scalar(outputs):
    """A weighted sum of all outputs; no two neighbours weigh the same."""
    return sum(
        jnp.sum(x * jnp.cos(jnp.arange(x.size) % 97.0).reshape(x.shape))
        for x in jax.tree.leaves(outputs)
    )


def recurrence(q, k, v, state, log_decay, segment_ids, scale):
    """Lightning attention token by token: outputs and last state."""
    q, k, v, memory = (np.asarray(x, np.float64).copy() for x in (q, k, v, state))
    decay = np.exp(np.asarray(log_decay, np.float64))[:, None, None]
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        document = 0
        for t in range(q.shape[1]):
            number = 1 if segment_ids is None else segment_ids[b, t]
            if number != 0:
                kept = decay * memory[b] if document in (0, number) else 0.0
                memory[b] = kept + k[b, t][:, :, None] * v[b, t][:, None, :]
                document = number
                out[b, t] = scale * np.einsum("nk,nkv->nv", q[b, t], memory[b])
    return out, memory


def lightning(q, k, v, state, log_decay, segment_ids, scale):
    """The recurrence unrolled: each output a sum over the tokens its memory still holds."""
    written, kept = _factors(np.asarray(log_decay, np.float64), segment_ids, q.shape[:2])
    real = np.ones(q.shape[:2]) if segment_ids is None else segment_ids != 0
    states = (
        jnp.einsum("btsn,bsnk,bsnv->btnkv", written, k, v) + kept[..., None, None] * state[:, None]
    )
    return scale * jnp.einsum("btnk,btnkv->btnv", q * real[:, :, None, None], states), states[:, -1]


def delta_recurrence(q, k, v, log_decay, beta, state, segment_ids, scale):
    """The gated delta rule token by token: outputs and last state."""
    q, k, v, decay, beta, memory = (
        np.asarray(x, np.float64).copy() for x in (q, k, v, log_decay, beta, state)
    )
    decay = np.exp(decay if decay.ndim == 4 else decay[..., None])[..., None]
    out = np.zeros_like(v)
    for b in range(q.shape[0]):
        document = 0
        for t in range(q.shape[1]):
            number = 1 if segment_ids is None else segment_ids[b, t]
            if number != 0:
                kept = decay[b, t] * memory[b] if document in (0, number) else 0.0 * memory[b]
                error = v[b, t] - np.einsum("nh,nhw->nw", k[b, t], kept)
                written = beta[b, t][:, None] * k[b, t]
                memory[b] = kept + written[:, :, None] * error[:, None]
                document = number
                out[b, t] = scale * np.einsum("nh,nhw->nw", q[b, t], memory[b])
    return out, memory


def delta_rule(q, k, v, log_decay, beta, state, segment_ids, scale):
    """The gated delta rule by its transition matrices, m_t = (1 - beta k k^T) D m_(t-1) + beta k v^T."""
    real, starts = np.ones(q.shape[:2], bool), np.zeros(q.shape[:2], bool)
    if segment_ids is not None:
        real = segment_ids != 0
        for b, row in enumerate(segment_ids):
            places = np.flatnonzero(row)
            starts[b, places[1:]] = row[places[1:]] != row[places[:-1]]
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]

    def step(memory, token):
        q, k, v, log_decay, beta, real, starts = token
        written = beta[..., None, None] * k[..., None]
        taken = jnp.eye(k.shape[-1])[None, None] - written * k[..., None, :]
        old = jnp.where(starts[:, None, None, None], 0.0, memory) * jnp.exp(log_decay)[..., None]
        after = jnp.einsum("bnij,bnjw->bniw", taken, old) + written * v[..., None, :]
        memory = jnp.where(real[:, None, None, None], after, memory)
        out = jnp.einsum("bnh,bnhw->bnw", q, memory)
        return memory, jnp.where(real[:, None, None], scale * out, 0.0)

    tokens = (q, k, v, log_decay, beta, jnp.asarray(real), jnp.asarray(starts))
    memory, out = jax.lax.scan(step, state, tuple(jnp.swapaxes(x, 0, 1) for x in tokens))
    return jnp.swapaxes(out, 0, 1), memory


def _factors(log_decay, segment_ids, shape):
    """How much of token s, and of the first state, is in the memory after token t."""
    batch, length = shape
    written, kept = (
        np.zeros((batch, length, length, len(log_decay))),
        np.zeros((batch, length, len(log_decay))),
    )
    for b in range(batch):
        document, tokens, first = 0, np.zeros((length, len(log_decay))), np.ones(len(log_decay))
        for t in range(length):
            number = 1 if segment_ids is None else segment_ids[b, t]
            if number != 0:
                fade = np.exp(log_decay) * (document in (0, number))
                document, tokens, first = number, fade * tokens, fade * first
                tokens[t] = 1.0
            written[b, t], kept[b, t] = tokens, first
    return written, kept


def attention(q, k, v, scale, query_slots=None, segment_ids=None, key_segment_ids=None):
    """Softmax over the keys each query sees, zeros where it sees none."""
    length, keys, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    slots = np.arange(length)[None] if query_slots is None else np.asarray(query_slots)
    seen = np.arange(keys) <= slots[:, :, None]
    if segment_ids is not None:
        same = segment_ids[:, :, None] == key_segment_ids[:, None]
        seen = seen & same & (segment_ids != 0)[:, :, None]
    heads = []
    for head in range(q.shape[2]):
        scores = scale * jnp.einsum("bth,bsh->bts", q[:, :, head], k[:, :, head // group])
        weights = jnp.exp(scores) * seen
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1.0, total)
        heads.append(jnp.einsum("bts,bsh->bth", weights, v[:, :, head // group]))
    return jnp.stack(heads, axis=2)


def relative_error(got, expected):
    """Root mean square of the gap over that of what was wanted."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.sqrt(np.mean((got - expected) ** 2)) / max(np.sqrt(np.mean(expected**2)), 1e-30)


def assert_close(got, expected, tolerance):
    for index, (x, y) in enumerate(
        zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    ):
        error = relative_error(x, y)
        assert error <= tolerance, f"output {index} is off by {error:.2g}"
