"""Both implementations of both losses answer the same questions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pallas_kernels import UnsupportedError, linear_cross_entropy, linear_kl
from pallas_kernels.linear_loss import CROSS_ENTROPY, KL, chunked

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 77, 24, 12, 97
every = pytest.mark.parametrize("implementation", list(KL))
both = pytest.mark.parametrize("loss", ["cross entropy", "kl"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, request):
    """Chunks of 16 tokens: five of them, the last one ragged."""
    if "memory" not in request.node.name:
        monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 16 * 4 * VOCABULARY)


def inputs(dtype=jnp.float32, tokens=TOKENS):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((tokens, WIDTH))
    head = 0.5 * rng.standard_normal((VOCABULARY, WIDTH))
    teacher = rng.standard_normal((tokens, TEACHER_WIDTH))
    teacher_head = 0.5 * rng.standard_normal((VOCABULARY, TEACHER_WIDTH))
    weights = np.where(rng.random(tokens) < 0.3, 0.0, rng.random(tokens))
    weights[0] = 0.7
    labels = jnp.asarray(rng.integers(0, VOCABULARY, tokens))
    numbers = (jnp.asarray(x, dtype) for x in (hidden, head, teacher, teacher_head))
    return *numbers, labels, jnp.asarray(weights, jnp.float32)


def make(loss, implementation, temperature=1.0, tokens=TOKENS, dtype=jnp.float32):
    """A function of (hidden, head, weights)."""
    _, _, teacher, teacher_head, labels, _ = inputs(dtype, tokens)
    if loss == "kl":
        return lambda hidden, head, weights: linear_kl(
            hidden,
            head,
            teacher,
            teacher_head,
            weights,
            temperature=temperature,
            implementation=implementation,
        )
    return lambda hidden, head, weights: linear_cross_entropy(
        hidden, head, labels, weights, implementation=implementation
    )


def definition(hidden, head, weights, teacher, teacher_head, labels, loss, temperature):
    """Weighted sum in float64."""
    student = jax.nn.log_softmax(hidden @ head.T / temperature, axis=-1)
    if loss == "kl":
        target = jax.nn.log_softmax(teacher @ teacher_head.T / temperature, axis=-1)
        numbers = temperature**2 * jnp.sum(jnp.exp(target) * (target - student), axis=-1)
    else:
        numbers = -jnp.take_along_axis(student, labels[:, None], axis=1)[:, 0]
    return jnp.sum(weights * numbers), numbers


@functools.cache
def wanted(loss, temperature=1.0, tokens=TOKENS, dtype=jnp.float32):
    """Total, numbers of the tokens that count, and gradients of the total, in float64."""
    hidden, head, teacher, teacher_head, labels, weights = inputs(dtype, tokens)
    with jax.enable_x64(True):
        floats = hidden, head, weights, teacher, teacher_head
        floats = [jnp.asarray(np.asarray(x, np.float64)) for x in floats]
        function = functools.partial(definition, loss=loss, temperature=temperature)
        both = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))
        (total, numbers), gradients = both(*floats, labels)
        numbers = np.where(np.asarray(weights) != 0, numbers, 0.0)
        return np.asarray(total), numbers, *map(np.asarray, gradients)


def got(function, arrays):
    (total, numbers), grads = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*arrays)
    return total, numbers, *grads


@every
@both
@pytest.mark.parametrize(("tokens", "temperature"), [(TOKENS, 1.0), (64, 2.5), (1, 1.0)])
def test_value_and_gradients_match_float64(implementation, loss, tokens, temperature):
    temperature = temperature if loss == "kl" else 1.0
    hidden, head, _, _, _, weights = inputs(tokens=tokens)
    arrays = hidden, head, weights
    function = make(loss, implementation, temperature, tokens)
    want = wanted(loss, temperature, tokens)
    oracles.assert_close(got(function, arrays), want, oracles.TOLERANCE["float32"])
    oracles.assert_close(jax.jit(function)(*arrays), want[:2], oracles.TOLERANCE["float32"])


@every
@both
def test_bfloat16_hidden_keeps_float32_losses(implementation, loss):
    hidden, head, _, _, _, weights = inputs(jnp.bfloat16)
    arrays = hidden, head.astype(jnp.float32), weights
    results = got(make(loss, implementation, dtype=jnp.bfloat16), arrays)
    want = wanted(loss, dtype=jnp.bfloat16)
    oracles.assert_close(results[:2], want[:2], 1e-5)
    oracles.assert_close(results[2:], want[2:], 5e-3)
    assert [x.dtype for x in results] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]


@every
@both
def test_a_token_of_weight_zero_is_skipped_whatever_it_holds(implementation, loss):
    hidden, head, _, _, _, weights = inputs()
    function = make(loss, implementation)
    clean = got(function, (hidden, head, weights))
    dirty = got(function, (jnp.where((weights == 0)[:, None], jnp.nan, hidden), head, weights))
    for x, y in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.any(clean[1][weights == 0])
    assert not np.any(clean[2][weights == 0])


@every
@both
def test_the_gradient_scales_with_what_multiplies_the_total(implementation, loss):
    hidden, head, _, _, _, weights = inputs()
    function = make(loss, implementation)

    @jax.jit
    def pull_back(factor):
        (_, numbers), back = jax.vjp(function, hidden, head, weights)
        return numbers, back((factor, jnp.zeros_like(numbers)))

    numbers, once = pull_back(1.0)
    _, thrice = pull_back(3.0)
    oracles.assert_close(thrice, [3 * np.asarray(x) for x in once], 1e-6)
    oracles.assert_close(once[2], numbers, 1e-6)


@every
@both
def test_numbers_carry_no_gradient(implementation, loss):
    hidden, head, _, _, _, weights = inputs()
    function = make(loss, implementation)
    numbers = jax.jit(jax.grad(lambda *a: jnp.sum(function(*a)[1]), (0, 1)))
    grads = numbers(hidden, head, weights)
    assert not any(np.any(x) for x in grads)


@every
def test_the_teacher_is_a_constant(implementation):
    hidden, head, teacher, teacher_head, _, weights = inputs()

    def loss(teacher, teacher_head):
        return linear_kl(
            hidden, head, teacher, teacher_head, weights, implementation=implementation
        )[0]

    grads = jax.jit(jax.grad(loss, (0, 1)))(teacher, teacher_head)
    assert not any(np.any(x) for x in grads)


@every
def test_a_student_equal_to_its_teacher_has_no_loss(implementation):
    hidden, head, _, _, _, weights = inputs()
    loss = functools.partial(linear_kl, implementation=implementation)
    total, numbers = jax.jit(loss)(hidden, head, hidden, head, weights)
    assert abs(float(total)) < 1e-6
    assert np.max(np.abs(numbers)) < 1e-6


@every
def test_a_tied_head_gets_the_gradients_of_both_uses(implementation):
    _, embedding, _, _, labels, weights = inputs()

    def tied(table):
        hidden = jnp.tanh(table[labels])
        return linear_cross_entropy(hidden, table, labels, weights, implementation=implementation)[
            0
        ]

    def plain(table):
        hidden = jnp.tanh(table[labels])
        log_probs = jax.nn.log_softmax(hidden @ table.T, axis=-1)
        return -jnp.sum(weights * jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0])

    got, want = (jax.jit(jax.grad(f))(embedding) for f in (tied, plain))
    oracles.assert_close(got, want, 5e-6)


@both
def test_a_loss_without_gradient_forms_none(loss):
    hidden, head, _, _, _, weights = inputs()
    text = jax.jit(make(loss, "chunked")).lower(hidden, head, weights).as_text()
    products = text.count("stablehlo.dot_general")
    assert products == (2 if loss == "kl" else 1)


@both
def test_memory_is_a_fifth_of_the_definition(loss):
    tokens, width, vocabulary = 4096, 512, 151_936
    hidden, head = ((tokens, width), jnp.float32), ((vocabulary, width), jnp.float32)
    shapes = [jax.ShapeDtypeStruct(*x) for x in (hidden, head, ((tokens,), jnp.float32))]
    labels = jax.ShapeDtypeStruct((tokens,), jnp.int32)

    def temporaries(implementation):
        def total(hidden, head, weights, labels, teacher, teacher_head):
            if loss == "kl":
                return linear_kl(
                    hidden, head, teacher, teacher_head, weights, implementation=implementation
                )[0]
            return linear_cross_entropy(
                hidden, head, labels, weights, implementation=implementation
            )[0]

        lowered = jax.jit(jax.grad(total, (0, 1))).lower(*shapes, labels, shapes[0], shapes[1])
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries("chunked") <= temporaries("reference") / 5


def test_an_unknown_name_is_refused():
    hidden, head, teacher, teacher_head, labels, weights = inputs()
    assert list(KL) == list(CROSS_ENTROPY)
    with pytest.raises(UnsupportedError, match="linear_kl has no implementation 'fused'"):
        linear_kl(hidden, head, teacher, teacher_head, weights, implementation="fused")
    with pytest.raises(UnsupportedError, match="linear_cross_entropy has no implementation 'x'"):
        linear_cross_entropy(hidden, head, labels, weights, implementation="x")
