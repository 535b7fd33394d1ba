"""All implementations of all losses answer the same questions."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pallas_kernels import (
    UnsupportedError,
    dispatch,
    linear_cross_entropy,
    linear_distillation,
    linear_kl,
    linear_kl_top_k,
)
from pallas_kernels.linear_loss import CROSS_ENTROPY, DISTILLATION, KL, KL_TOP_K, chunked

pytestmark = pytest.mark.brief
EXTENDED = pytest.mark.extended

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY, K = 77, 24, 12, 97, 5
BOTH = " and cross entropy"
MIX = np.asarray([[0.75, 0.25]], np.float32)  # of a divergence and the cross entropy beside it
TABLES = {"cross entropy": CROSS_ENTROPY, "kl": KL, "top-k kl": KL_TOP_K}
every = pytest.mark.parametrize(("loss", "implementation"), oracles.each_of(TABLES))
every_kl = pytest.mark.parametrize("implementation", oracles.each(KL))
every_top_k = pytest.mark.parametrize("implementation", oracles.each(KL_TOP_K))
every_loss = pytest.mark.parametrize("loss", list(TABLES))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 16 tokens: five of them, the last one ragged. Kernels are interpreted: in chunks of
    32 tokens, and four tiles of the vocabulary, the last one of a single row."""
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 16 * 4 * VOCABULARY)
    monkeypatch.setattr(chunked, "LEAST_TOKENS", 8)
    with dispatch.interpreted():
        yield


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


def top_k(teacher, teacher_head, temperature, k=K):
    """The k largest log-probabilities of each token, likeliest last, and their indices."""
    log_probs = jax.nn.log_softmax(teacher @ teacher_head.T / temperature, axis=-1)
    indices = jnp.argsort(log_probs, axis=-1)[:, -k:]
    return jnp.take_along_axis(log_probs, indices, axis=-1), indices


def make(loss, implementation, temperature=1.0, tokens=TOKENS, dtype=jnp.float32):
    """A function of (hidden, head, weights)."""
    _, _, teacher, teacher_head, labels, _ = inputs(dtype, tokens)
    name: dict[str, Any] = {"implementation": implementation}
    if loss == "cross entropy":
        return lambda hidden, head, weights: linear_cross_entropy(
            hidden, head, labels, weights, **name
        )
    if loss.endswith(BOTH):
        name |= {"divergence": loss.removesuffix(BOTH), "temperature": temperature}

        def mixed(hidden, head, weights):
            target = teacher, teacher_head, labels, weights[:, None] * MIX
            total, losses = linear_distillation(hidden, head, *target, **name)
            return total, losses[:, 0] * MIX[0, 0] + losses[:, 1] * MIX[0, 1]

        return mixed
    if loss == "kl":
        target, op = (teacher, teacher_head), linear_kl
    else:
        teacher, teacher_head = teacher.astype(jnp.float32), teacher_head.astype(jnp.float32)
        target, op = top_k(teacher, teacher_head, temperature), linear_kl_top_k
    return lambda hidden, head, weights: op(
        hidden, head, *target, weights, temperature=temperature, **name
    )


def definition(hidden, head, weights, teacher, teacher_head, labels, loss, temperature):
    """Weighted sum in float64."""
    student = jax.nn.log_softmax(hidden @ head.T / temperature, axis=-1)
    target = jax.nn.log_softmax(teacher @ teacher_head.T / temperature, axis=-1)
    if loss == "cross entropy":
        numbers = -jnp.take_along_axis(student, labels[:, None], axis=1)[:, 0]
    elif loss.endswith(BOTH):
        rest = weights, teacher, teacher_head, labels, "cross entropy", 1.0
        numbers = MIX[0, 1] * definition(hidden, head, *rest)[1]
        apart = temperature**2 * divergence(target, student, loss.removesuffix(BOTH))
        numbers += MIX[0, 0] * apart
    else:
        if loss == "top-k kl":
            _, indices = top_k(teacher, teacher_head, temperature)
            student, target = buckets(student, indices), buckets(target, indices)
        numbers = temperature**2 * jnp.sum(jnp.exp(target) * (target - student), axis=-1)
    return jnp.sum(weights * numbers), numbers


def divergence(target, student, name):
    """Of each token, from the sums themselves."""
    p, s = jnp.exp(target), jnp.exp(student)
    of_mean = {"kl": s, "reverse_kl": p, "jensen_shannon": (p + s) / 2}[name]
    parts = {"kl": (1, 0), "reverse_kl": (0, 1), "jensen_shannon": (0.5, 0.5)}[name]
    terms = (x * (jnp.log(x) - jnp.log(of_mean)) for x in (p, s))
    return sum(part * jnp.sum(term, axis=-1) for part, term in zip(parts, terms, strict=True))


def buckets(log_probs, indices):
    """Log-probabilities of the tokens of these indices, and that of being none of them."""
    kept = jnp.take_along_axis(log_probs, indices, axis=-1)
    rest = jnp.log1p(-jnp.sum(jnp.exp(kept), axis=-1, keepdims=True))
    return jnp.concatenate([kept, rest], axis=-1)


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
@pytest.mark.parametrize(
    ("tokens", "temperature"),
    [(TOKENS, 1.0), *(pytest.param(*case, marks=EXTENDED) for case in ((64, 2.5), (1, 1.0)))],
)
def test_value_and_gradients_match_float64(implementation, loss, tokens, temperature):
    temperature = 1.0 if loss == "cross entropy" else temperature
    hidden, head, _, _, _, weights = inputs(tokens=tokens)
    arrays = hidden, head, weights
    function = make(loss, implementation, temperature, tokens)
    expected = wanted(loss, temperature, tokens)
    oracles.assert_close(got(function, arrays), expected, oracles.TOLERANCE["float32"])
    oracles.assert_close(jax.jit(function)(*arrays), expected[:2], oracles.TOLERANCE["float32"])


@pytest.mark.extended
@every
def test_bfloat16_hidden_keeps_float32_losses(implementation, loss):
    hidden, head, _, _, _, weights = inputs(jnp.bfloat16)
    arrays = hidden, head.astype(jnp.float32), weights
    results = got(make(loss, implementation, dtype=jnp.bfloat16), arrays)
    expected = wanted(loss, dtype=jnp.bfloat16)
    oracles.assert_close(results[:2], expected[:2], 1e-5)
    oracles.assert_close(results[2:], expected[2:], 5e-3)
    assert [x.dtype for x in results] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]


@every
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
def test_numbers_carry_no_gradient(implementation, loss):
    hidden, head, _, _, _, weights = inputs()
    function = make(loss, implementation)
    numbers = jax.jit(jax.grad(lambda *a: jnp.sum(function(*a)[1]), (0, 1)))
    grads = numbers(hidden, head, weights)
    assert not any(np.any(x) for x in grads)


@pytest.mark.parametrize("implementation", DISTILLATION)
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jensen_shannon"])
def test_a_divergence_beside_a_cross_entropy_matches_float64(implementation, name):
    """Whatever tokens of weight 0 hold; and what multiplies the total multiplies the gradients."""
    hidden, head, _, _, _, weights = inputs()
    function = make(name + BOTH, implementation, 2.5)
    dirty = jnp.where((weights == 0)[:, None], jnp.nan, hidden)

    @jax.jit
    def thrice(hidden, head, weights):
        (total, numbers), back = jax.vjp(function, hidden, head, weights)
        return total, numbers, *back((3.0, jnp.zeros_like(numbers)))

    total, numbers, *gradients, toward_weights = thrice(dirty, head, weights)
    results = total, numbers, *(x / 3 for x in gradients)
    oracles.assert_close(results, wanted(name + BOTH, 2.5), oracles.TOLERANCE["float32"])
    oracles.assert_close(toward_weights, 3 * np.asarray(numbers), 1e-6)


def test_a_divergence_beside_cross_entropies_is_given_whatever_its_weight():
    """That of the teacher too; a token is skipped where both weights are 0."""
    hidden, head, teacher, teacher_head, labels, weights = inputs()
    alone = jnp.stack([0 * weights, weights], axis=-1)
    total, losses = jax.jit(linear_distillation)(hidden, head, teacher, teacher_head, labels, alone)
    expected = (
        wanted("kl")[1],
        wanted("cross entropy")[1],
        jax.jit(linear_cross_entropy)(teacher, teacher_head, labels, weights)[1],
    )
    oracles.assert_close(losses, jnp.stack(expected, axis=-1), 5e-6)
    np.testing.assert_allclose(total, wanted("cross entropy")[0], rtol=1e-5)


@every_kl
def test_the_teacher_is_a_constant(implementation):
    hidden, head, teacher, teacher_head, _, weights = inputs()

    def loss(teacher, teacher_head):
        return linear_kl(
            hidden, head, teacher, teacher_head, weights, implementation=implementation
        )[0]

    grads = jax.jit(jax.grad(loss, (0, 1)))(teacher, teacher_head)
    assert not any(np.any(x) for x in grads)


@every_kl
def test_a_student_equal_to_its_teacher_has_no_loss(implementation):
    hidden, head, _, _, _, weights = inputs()
    loss = functools.partial(linear_kl, implementation=implementation)
    total, numbers = jax.jit(loss)(hidden, head, hidden, head, weights)
    assert abs(float(total)) < 1e-6
    assert np.max(np.abs(numbers)) < 1e-6


@pytest.mark.extended
@every
def test_a_tied_head_gets_the_gradients_of_both_uses(implementation, loss):
    _, embedding, teacher, teacher_head, labels, weights = inputs()
    op = make(loss, implementation)

    def tied(table):
        return op(jnp.tanh(table[labels]), table, weights)[0]

    def plain(table):
        rest = weights, teacher, teacher_head, labels, loss, 1.0
        return definition(jnp.tanh(table[labels]), table, *rest)[0]

    got, expected = (jax.jit(jax.grad(f))(embedding) for f in (tied, plain))
    oracles.assert_close(got, expected, 5e-6)


@every_loss
def test_a_loss_without_gradient_forms_none(loss):
    hidden, head, _, _, _, weights = inputs()
    text = jax.jit(make(loss, "chunked")).lower(hidden, head, weights).as_text()
    products = text.count("stablehlo.dot_general")
    assert products == (2 if loss == "kl" else 1)


@every_top_k
def test_all_of_the_vocabulary_as_top_k_is_the_whole_kl(implementation):
    hidden, head, teacher, teacher_head, _, weights = inputs()
    target = top_k(teacher, teacher_head, 1.5, VOCABULARY)
    options = {"temperature": 1.5, "implementation": implementation}
    whole = got(
        lambda h, m, w: linear_kl(h, m, teacher, teacher_head, w, **options),
        (hidden, head, weights),
    )
    listed = got(
        lambda h, m, w: linear_kl_top_k(h, m, *target, w, **options), (hidden, head, weights)
    )
    oracles.assert_close(listed, whole, oracles.TOLERANCE["float32"])


@every_top_k
def test_a_probability_of_zero_among_the_top_k_adds_only_its_student_mass(implementation):
    """To list a token as impossible takes it out of the tail: the others' buckets are unchanged."""
    hidden, head, teacher, teacher_head, _, weights = inputs()
    far = teacher_head.at[3].set(0.0)
    values = (teacher @ far.T).at[:, 3].set(-jnp.inf)
    log_probs = jax.nn.log_softmax(values, axis=-1)
    indices = jnp.argsort(log_probs, axis=-1)[:, -K:].at[:, 0].set(3)
    target = jnp.take_along_axis(log_probs, indices, axis=-1)
    total, numbers, *grads = got(
        lambda h, m, w: linear_kl_top_k(h, m, target, indices, w, implementation=implementation),
        (hidden, head, weights),
    )
    student = buckets(jax.nn.log_softmax(hidden @ head.T, axis=-1), indices)
    probs = jnp.exp(buckets(log_probs, indices))
    terms = jnp.where(probs > 0, probs * (jnp.log(probs) - student), 0.0)
    expected = jnp.where(weights != 0, jnp.sum(terms, axis=-1), 0.0)
    oracles.assert_close((total, numbers), (jnp.sum(weights * expected), expected), 5e-6)
    assert all(np.all(np.isfinite(x)) for x in grads)


@every_top_k
def test_a_tail_that_the_student_has_all_but_ruled_out_keeps_a_finite_loss(implementation):
    """The student's tail is exp(-200): nothing in float32, but its logarithm is not."""
    hidden, head = jnp.eye(4)[:1], jnp.zeros((VOCABULARY, 4)).at[7, 0].set(200.0)
    log_probs, indices = jnp.log(jnp.array([[0.5]])), jnp.array([[7]])
    total, _, toward_hidden, _ = got(
        lambda h, m, w: linear_kl_top_k(h, m, log_probs, indices, w, implementation=implementation),
        (hidden, head, jnp.ones(1)),
    )
    np.testing.assert_allclose(total, -np.log(2) + 0.5 * (200 - np.log(VOCABULARY - 1)), rtol=1e-6)
    np.testing.assert_allclose(toward_hidden[0, 0], 0.5 * 200, rtol=1e-6)


def test_the_top_k_teacher_is_a_constant():
    hidden, head, teacher, teacher_head, _, weights = inputs()
    log_probs, indices = top_k(teacher, teacher_head, 1.0)
    for implementation in KL_TOP_K:
        grads = jax.jit(
            jax.grad(
                lambda x, name=implementation: linear_kl_top_k(
                    hidden, head, x, indices, weights, implementation=name
                )[0]
            )
        )(log_probs)
        assert not np.any(grads)


def test_an_unknown_name_is_refused():
    hidden, head, teacher, teacher_head, labels, weights = inputs()
    assert list(KL) == list(CROSS_ENTROPY) == [*KL_TOP_K, "tpu"] == [*DISTILLATION, "tpu"]
    with pytest.raises(UnsupportedError, match="linear_kl has no implementation 'fused'"):
        inspect.unwrap(linear_kl)(
            hidden, head, teacher, teacher_head, weights, implementation="fused"
        )
    with pytest.raises(UnsupportedError, match="linear_cross_entropy has no implementation 'x'"):
        inspect.unwrap(linear_cross_entropy)(hidden, head, labels, weights, implementation="x")
