"""Every implementation of lightning attention answers the same questions."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pallas_kernels import UnsupportedError, dispatch, lightning_attention
from pallas_kernels.lightning_attention import IMPLEMENTATIONS, TAKE_PRECISION

pytestmark = pytest.mark.brief

SCALE = 0.25
every = pytest.mark.parametrize("implementation", oracles.each(IMPLEMENTATIONS))


@pytest.fixture(autouse=True)
def kernels_are_interpreted():
    with dispatch.interpreted():
        yield


def inputs(batch=2, length=130, heads=3, width=16, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    tokens = [rng.standard_normal((batch, length, heads, width)) for _ in range(3)]
    state = rng.standard_normal((batch, heads, width, width))
    return *(jnp.asarray(x, dtype) for x in tokens), jnp.asarray(state, jnp.float32)


def decays(heads=3):
    """From the strongest of HypeNet to one that hardly fades."""
    return -jnp.asarray(np.geomspace(0.85, 2**-8, heads), jnp.float32)


def documents(length=130):
    """Left, right and interior padding, documents of one token, and a row that is one document."""
    rows = np.ones((2, length), np.int32)
    rows[0, :7], rows[0, 7:40], rows[0, 40:52], rows[0, 52:60] = 0, 3, 0, 3
    rows[0, 60], rows[0, 61:120], rows[0, 120:] = 9, 4, 0
    return rows


@functools.partial(jax.jit, static_argnames="implementation")
def run(q, k, v, state, log_decay, segment_ids=None, implementation=None):
    return lightning_attention(
        q, k, v, log_decay, state, segment_ids, scale=SCALE, implementation=implementation
    )


@functools.partial(jax.jit, static_argnames="implementation")
def gradients(q, k, v, state, log_decay, segment_ids=None, implementation=None):
    def loss(*arrays):
        return oracles.scalar(run(*arrays, log_decay, segment_ids, implementation))

    return jax.grad(loss, (0, 1, 2, 3))(q, k, v, state)


def definition(arrays, log_decay, segment_ids=None):
    return oracles.recurrence(*arrays, log_decay, segment_ids, SCALE)


@functools.cache
def float64(packed, dtype=jnp.float32):
    function = functools.partial(
        oracles.lightning,
        log_decay=decays(),
        segment_ids=documents() if packed else None,
        scale=SCALE,
    )
    return oracles.value_and_gradients(function, *inputs(dtype=dtype))


@every
@pytest.mark.parametrize("packed", [False, True])
def test_outputs_state_and_gradients_match_float64(implementation, packed):
    arrays, log_decay, segments = inputs(), decays(), documents() if packed else None
    out, grads = float64(packed)
    oracles.assert_close(out, definition(arrays, log_decay, segments), 1e-12)
    tolerance = oracles.TOLERANCE["float32"]
    oracles.assert_close(run(*arrays, log_decay, segments, implementation), out, tolerance)
    oracles.assert_close(gradients(*arrays, log_decay, segments, implementation), grads, tolerance)


@pytest.mark.extended
@every
def test_bfloat16_loses_only_the_rounding_of_its_output(implementation):
    arrays, log_decay, segments = inputs(dtype=jnp.bfloat16), decays(), documents()
    (perfect, last), grads = float64(True, jnp.bfloat16)
    out, state = run(*arrays, log_decay, segments, implementation)
    assert (out.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    rounding = oracles.relative_error(np.asarray(perfect, jnp.bfloat16), perfect)
    oracles.assert_close(out, perfect, 1.2 * rounding)
    oracles.assert_close(state, last, oracles.TOLERANCE["float32"])
    oracles.assert_close(gradients(*arrays, log_decay, segments, implementation), grads, 5e-3)


@every
@pytest.mark.parametrize("length", [31, 63, 65])
def test_any_length_equals_the_recurrence(implementation, length):
    """Of chunks of 32 and of 64 (the kernel for GPUs), one more and one less."""
    arrays, log_decay = inputs(length=length, heads=5, width=8), decays(5)
    got = run(*arrays, log_decay, None, implementation)
    oracles.assert_close(got, definition(arrays, log_decay), 5e-6)


@every
@pytest.mark.parametrize("length", [1, 65])
def test_one_token_and_one_more_than_a_chunk_have_their_gradients(implementation, length):
    arrays, log_decay = inputs(length=length, width=8), decays()

    @jax.jit
    def both(*arrays):
        def loss(*arrays):
            out = run(*arrays, log_decay, None, implementation)
            return oracles.scalar(out), out

        gradients, out = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(*arrays)
        return out, gradients

    function = functools.partial(
        oracles.lightning, log_decay=log_decay, segment_ids=None, scale=SCALE
    )
    oracles.assert_close(both(*arrays), oracles.value_and_gradients(function, *arrays), 5e-6)


@every
def test_two_halves_equal_the_whole(implementation):
    q, k, v, state = inputs()
    cut = 65
    log_decay, segments = decays(), jnp.ones((2, 130), jnp.int32)
    whole = run(q, k, v, state, log_decay, segments, implementation)
    first, middle = run(q[:, :cut], k[:, :cut], v[:, :cut], state, log_decay, None, implementation)
    second, last = run(q[:, cut:], k[:, cut:], v[:, cut:], middle, log_decay, None, implementation)
    oracles.assert_close((jnp.concatenate([first, second], 1), last), whole, 5e-6)


@every
def test_packed_documents_equal_separate_ones(implementation):
    q, k, v, state = inputs()
    segments = jnp.asarray(np.repeat([[5, 2], [6, 1]], 65, axis=1))
    log_decay = decays()
    packed, last = run(q, k, v, state, log_decay, segments, implementation)
    for part, before in ((slice(65), state), (slice(65, 130), jnp.zeros_like(state))):
        out, memory = run(*(x[:, part] for x in (q, k, v)), before, log_decay, None, implementation)
        oracles.assert_close(packed[:, part], out, 5e-6)
    oracles.assert_close(last, memory, 5e-6)


@every
@pytest.mark.parametrize("garbage", [7.0, np.nan])
def test_padding_on_any_side_changes_nothing(implementation, garbage):
    arrays, log_decay = inputs(length=90), decays()
    out, last = definition(arrays, log_decay)
    places = np.r_[5:40, 60:115]
    segments = np.zeros((2, 130), np.int32)
    segments[:, places] = 1

    def padded_with(x):
        room = np.full((2, 130, 3, 16), garbage, np.float32)
        room[:, places] = x
        return jnp.asarray(room)

    padded = [padded_with(x) for x in arrays[:3]]
    got, memory = run(*padded, arrays[3], log_decay, segments, implementation)
    oracles.assert_close((got[:, places], memory), (out, last), 5e-6)
    assert not np.any(np.delete(np.asarray(got), places, axis=1))
    grads = gradients(*padded, arrays[3], log_decay, segments, implementation)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in grads)


@every
def test_no_output_depends_on_a_later_token(implementation):
    q, k, v, state = inputs()

    def early(q, k, v):
        return jnp.sum(run(q, k, v, state, decays(), None, implementation)[0][:, :70] ** 2)

    for gradient in jax.jit(jax.grad(early, (0, 1, 2)))(q, k, v):
        assert not np.any(gradient[:, 70:])
        assert np.all(np.any(gradient[:, :70], axis=(2, 3)))


@every
@pytest.mark.parametrize("log_decay", [0.0, -1e-6, -1.0, -80.0, -1e4])
def test_no_decay_is_too_weak_or_too_strong(implementation, log_decay):
    arrays, log_decay = inputs(), jnp.full(3, log_decay, jnp.float32)
    for segments in (None, documents()):
        got = run(*arrays, log_decay, segments, implementation)
        oracles.assert_close(got, definition(arrays, log_decay, segments), 5e-6)
        grads = gradients(*arrays, log_decay, segments, implementation)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in grads)


@every
def test_an_old_state_still_counts_after_a_thousand_tokens(implementation):
    q, k, v, state = inputs(batch=1, length=1000, heads=1, width=4)
    slow = -jnp.asarray([2.0**-8])
    with_state = run(q, k, v, state, slow, None, implementation)[1]
    without = run(q, k, v, jnp.zeros_like(state), slow, None, implementation)[1]
    oracles.assert_close(with_state - without, np.exp(-1000 / 256) * state, 1e-3)


@pytest.mark.slow
@every
def test_the_memory_is_sound_after_a_million_tokens(implementation):
    """One head as slow as HypeNet's slowest, one that never forgets: a sum of a million products."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2**10, 1, 2**10, 2, 4)), "float32") for _ in "qkv")
    nothing, log_decay = jnp.zeros((1, 2, 4, 4)), jnp.asarray([-(2.0**-8), 0.0])

    def part(memory, tokens):
        out, memory = run(*tokens, memory, log_decay, None, implementation)
        return memory, jnp.all(jnp.isfinite(out))

    last, finite = jax.jit(lambda *tokens: jax.lax.scan(part, nothing, tokens))(q, k, v)
    assert np.all(finite)
    k, v = (np.asarray(x, np.float64).reshape(2**20, 2, 4) for x in (k, v))
    left = np.exp(-np.arange(2**20)[::-1] / 256)
    oracles.assert_close(last[0, 0], (left[:, None] * k[:, 0]).T @ v[:, 0], 5e-6)
    oracles.assert_close(last[0, 1], k[:, 1].T @ v[:, 1], 1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_of_decoding_writes_into_the_memory_it_was_given(batch):
    """One token after the other, each in a program whose memory is donated, is the recurrence."""
    q, k, v, state = inputs(batch, length=5)
    expected = definition((q, k, v, state), decays())
    step = jax.jit(functools.partial(lightning_attention, scale=SCALE), donate_argnums=4)
    shapes = q[:, :1], k[:, :1], v[:, :1], decays(), state
    memory = step.lower(*shapes).compile().memory_analysis()
    assert memory.alias_size_in_bytes == state.nbytes
    assert memory.temp_size_in_bytes < state.nbytes
    outs, given = [], jnp.copy(state)
    for t in range(5):
        token = (x[:, t : t + 1] for x in (q, k, v))
        out, state = step(*token, decays(), given)
        assert given.is_deleted()
        outs, given = [*outs, out], state
    oracles.assert_close((jnp.concatenate(outs, axis=1), state), expected, 5e-6)


@every
def test_one_pass_lets_the_kernels_round_and_only_them(implementation):
    arrays = inputs(dtype=jnp.bfloat16)
    expected = definition(arrays, decays())[1]

    def error(precision):
        function = functools.partial(
            lightning_attention, scale=SCALE, implementation=implementation, precision=precision
        )
        return oracles.relative_error(
            jax.jit(function)(*arrays[:3], decays(), arrays[3])[1], expected
        )

    errors = error("split"), error("one_pass")
    assert errors[0] < 5e-6
    assert 1e-4 < errors[1] < 4e-3 if implementation in TAKE_PRECISION else errors[1] == errors[0]


@every
def test_the_decay_is_a_constant(implementation):
    arrays = inputs()

    def loss(log_decay):
        return jnp.sum(run(*arrays, log_decay, None, implementation)[0])

    assert not np.any(jax.jit(jax.grad(loss))(decays()))


def test_no_state_is_a_state_of_zeros():
    q, k, v, state = inputs()
    without = jax.jit(lambda *a: lightning_attention(*a, scale=SCALE))(q, k, v, decays())
    oracles.assert_close(without, run(q, k, v, jnp.zeros_like(state), decays()), 1e-7)


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    q, k, v, state = inputs(length=4)
    with pytest.raises(UnsupportedError, match=r"no implementation 'quick'; it has recurrent, "):
        # Past the check of its types.
        inspect.unwrap(lightning_attention)(
            q, k, v, decays(), state, scale=SCALE, implementation="quick"
        )
