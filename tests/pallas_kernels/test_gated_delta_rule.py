"""Every implementation of the gated delta rule answers the same questions, with decays per head and per channel.

One shape for nearly all, so that each is compiled once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pallas_kernels import UnsupportedError, gated_delta_rule
from pallas_kernels.gated_delta_rule import IMPLEMENTATIONS
from pallas_kernels.gated_delta_rule.pairs import inverse

pytestmark = pytest.mark.brief

SCALE, LENGTH = 0.37, 70
every = pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
decays = pytest.mark.parametrize("channels", [False, True], ids=["per head", "per channel"])


def inputs(channels, batch=2, length=LENGTH, heads=2, seed=0):
    """Keys of length 1, eight wide; values six wide; a fifth of the decays from strong to none left."""
    rng = np.random.default_rng(seed)
    shape = (batch, length, heads)
    q, k, v = (rng.standard_normal((*shape, width)) for width in (8, 8, 6))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    shape_of_decays = (*shape, 8) if channels else shape
    strong = rng.uniform(size=shape_of_decays) < 0.2
    log_decay = -rng.uniform(0, np.where(strong, 30.0, 0.4), shape_of_decays)
    beta, state = rng.uniform(0, 2, shape), rng.standard_normal((batch, heads, 8, 6))
    return [jnp.asarray(x, jnp.float32) for x in (q, k, v, log_decay, beta, state)]


def documents():
    """Left, right and interior padding, documents of one token, and a row that is one document."""
    rows = np.ones((2, LENGTH), np.int32)
    rows[0, :7], rows[0, 7:20], rows[0, 20:29], rows[0, 29:33] = 0, 3, 0, 3
    rows[0, 33], rows[0, 34:60], rows[0, 60:] = 9, 4, 0
    return rows


@functools.partial(jax.jit, static_argnames="implementation")
def run(arrays, segment_ids=None, implementation=None):
    """Outputs, last state, and the gradients of all arrays."""

    def op(*arrays):
        return gated_delta_rule(*arrays, segment_ids, scale=SCALE, implementation=implementation)

    return oracles.with_gradients(op, *arrays)


def in_one_document(arrays, implementation):
    return run(arrays, jnp.ones(arrays[0].shape[:2], jnp.int32), implementation)


@functools.cache
def float64(channels):
    exact = functools.partial(oracles.delta_rule, segment_ids=documents(), scale=SCALE)
    return oracles.value_and_gradients(exact, *inputs(channels))


def definition(arrays, segment_ids=None):
    return oracles.delta_recurrence(*arrays, segment_ids, SCALE)


@every
@decays
def test_outputs_state_and_gradients_match_float64(channels, implementation):
    arrays, tolerance = inputs(channels), oracles.TOLERANCE["float32"]
    expected = float64(channels)
    oracles.assert_close(expected[0], definition(arrays, documents()), 1e-12)
    oracles.assert_close(run(arrays, documents(), implementation), expected, tolerance)


@every
@decays
def test_two_halves_equal_the_whole(channels, implementation):
    """Padding stands for the other half."""
    *tokens, state = inputs(channels)
    whole, _ = in_one_document([*tokens, state], implementation)
    first = jnp.broadcast_to(jnp.arange(LENGTH)[None] < 41, (2, LENGTH)).astype(jnp.int32)
    (before, middle), _ = run([*tokens, state], first, implementation)
    (after, last), _ = run([*tokens, middle], 1 - first, implementation)
    oracles.assert_close((before + after, last), whole, 5e-6)


@every
@decays
def test_packed_documents_equal_separate_ones(channels, implementation):
    *tokens, state = inputs(channels)
    ids = jnp.asarray(np.repeat([[5, 2], [6, 1]], 35, axis=1), jnp.int32)
    (packed, last), gradients = run([*tokens, state], ids, implementation)
    first = (jnp.arange(LENGTH) < 35).astype(jnp.int32)[None]
    (one, _), _ = run([*tokens, state], ids * first, implementation)
    other = run([*tokens, jnp.zeros_like(state)], ids * (1 - first), implementation)
    oracles.assert_close((packed, last), (one + other[0][0], other[0][1]), 5e-6)
    oracles.assert_close(
        [x[:, 35:] for x in gradients[:5]], [x[:, 35:] for x in other[1][:5]], 5e-6
    )


@every
@decays
def test_padding_changes_nothing_though_it_is_nan(channels, implementation):
    *tokens, state = inputs(channels)
    ids = documents()
    padding = jnp.asarray(ids == 0)
    spoilt = [
        jnp.where(padding.reshape(2, LENGTH, *(1,) * (x.ndim - 2)), jnp.nan, x) for x in tokens
    ]
    clean, dirty = (run([*each, state], ids, implementation) for each in (tokens, spoilt))
    for x, y in zip(jax.tree.leaves(dirty), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.any(dirty[0][0][padding])


@every
@decays
@pytest.mark.parametrize("log_decay", [0.0, -80.0, -1e4])
def test_no_decay_is_too_weak_or_too_strong(channels, implementation, log_decay):
    """At every token, and at one of them alone: what lies on either side is as exact as without it."""
    arrays = inputs(channels)
    everywhere = jnp.full_like(arrays[3], log_decay)
    once = jnp.full_like(arrays[3], -0.01).at[:, 20].set(log_decay)
    for decays in (everywhere, once):
        some = [*arrays[:3], decays, *arrays[4:]]
        got = in_one_document(some, implementation)
        oracles.assert_close(got[0], definition(some), 5e-6)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in got[1])


@every
@decays
def test_keys_that_are_all_alike_lose_no_digits(channels, implementation):
    """The power series of the triangular system would reach 1e8 before it ends."""
    arrays = inputs(channels)
    arrays[1] = jnp.broadcast_to(arrays[1][:, :1], arrays[1].shape)
    arrays[3], arrays[4] = jnp.full_like(arrays[3], -1e-3), jnp.full_like(arrays[4], 1.9)
    oracles.assert_close(in_one_document(arrays, implementation)[0], definition(arrays), 2e-5)


@every
@decays
def test_no_output_depends_on_a_later_token(channels, implementation):
    *tokens, state = inputs(channels)
    later = inputs(channels, seed=1)[:5]
    mixed = [x.at[:, 40:].set(y[:, 40:]) for x, y in zip(tokens, later, strict=True)]
    (one, _), (other, _) = (
        in_one_document([*each, state], implementation)[0] for each in (tokens, mixed)
    )
    np.testing.assert_array_equal(one[:, :40], other[:, :40])
    assert np.all(np.any(one[:, 40:] != other[:, 40:], axis=(2, 3)))


@decays
def test_fewer_tokens_than_a_chunk_that_are_no_power_of_two_equal_the_recurrence(channels):
    arrays = inputs(channels, length=5)
    op = jax.jit(functools.partial(gated_delta_rule, scale=SCALE))
    oracles.assert_close(op(*arrays), definition(arrays), 5e-6)


def test_bfloat16_loses_only_the_rounding_of_its_output():
    arrays = inputs(False)
    arrays[:3] = (x.astype(jnp.bfloat16) for x in arrays[:3])
    out, state = jax.jit(functools.partial(gated_delta_rule, scale=SCALE))(*arrays)
    assert (out.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    perfect, last = definition(arrays)
    rounding = oracles.relative_error(np.asarray(perfect, jnp.bfloat16), perfect)
    oracles.assert_close(out, perfect, 1.2 * rounding)
    oracles.assert_close(state, last, 5e-6)


@decays
def test_a_step_of_decoding_writes_into_the_state_it_was_given(channels):
    """One token after the other, each in a program whose state is donated, is the recurrence."""
    *tokens, state = inputs(channels, length=3)
    expected = definition([*tokens, state])
    step = jax.jit(functools.partial(gated_delta_rule, scale=SCALE), donate_argnums=5)
    outs, given = [], jnp.copy(state)
    for t in range(3):
        out, state = step(*(x[:, t : t + 1] for x in tokens), given)
        assert given.is_deleted()
        outs, given = [*outs, out], state
    oracles.assert_close((jnp.concatenate(outs, axis=1), state), expected, 5e-6)


def test_a_state_that_is_not_given_is_zeros_and_a_decay_may_be_the_same_in_all_channels():
    q, k, v, log_decay, beta, state = inputs(False)
    wide = jnp.broadcast_to(log_decay[..., None], q.shape)
    ones = jnp.ones((2, LENGTH), jnp.int32)
    op = functools.partial(gated_delta_rule, scale=SCALE)
    without = jax.jit(op)(q, k, v, wide, beta, None, ones)
    zeros = in_one_document([q, k, v, log_decay, beta, 0 * state], "chunked")[0]
    oracles.assert_close(without, zeros, 5e-6)


def test_the_inverse_and_its_gradient_are_those_of_the_matrix():
    lower = jnp.tril(jax.random.normal(jax.random.key(0), (3, 16, 16)), -1)
    function = lambda x: jnp.linalg.inv(jnp.eye(16)[None] + x)  # noqa: E731
    got = oracles.with_gradients(lambda x: inverse(jnp.tril(x, -1)), lower)
    expected = oracles.value_and_gradients(lambda x: function(jnp.tril(x, -1)), lower)
    oracles.assert_close(got, expected, 5e-6)


def test_what_cannot_run_is_refused_with_what_would():
    arrays = inputs(False, length=4)
    with pytest.raises(
        UnsupportedError, match="no implementation 'quick'; it has recurrent, chunked"
    ):
        gated_delta_rule.__wrapped__(*arrays, scale=SCALE, implementation="quick")
    arrays[3] = arrays[3][..., None][..., [0] * 3]
    with pytest.raises(
        ValueError, match=r"log_decay is \(2, 4, 2, 3\) for keys \(2, 4, 2, 8\); give one"
    ):
        gated_delta_rule(*arrays, scale=SCALE)
