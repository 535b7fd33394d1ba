"""What the chunked losses must cost, beside their definitions. The times: pytest -m slow -s."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import linear_cross_entropy, linear_kl, linear_kl_top_k

TOKENS, WIDTH, K = 4096, 512, 64
LOSSES = {
    "cross entropy": linear_cross_entropy,
    "kl": linear_kl,
    "top-k kl": linear_kl_top_k,
}
every_loss = pytest.mark.parametrize("loss", list(LOSSES))


def compiled(loss, vocabulary, implementation):
    """Gradients of a loss by hidden and head, and the shapes of its arguments."""
    hidden, head, log_probs, weights = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((TOKENS, WIDTH), (vocabulary, WIDTH), (TOKENS, K), (TOKENS,))
    )
    labels, indices = (jax.ShapeDtypeStruct(x, jnp.int32) for x in ((TOKENS,), (TOKENS, K)))
    targets = {"cross entropy": (labels,), "kl": (hidden, head), "top-k kl": (log_probs, indices)}

    def total(hidden, head, weights, *target):
        return LOSSES[loss](hidden, head, *target, weights, implementation=implementation)[0]

    shapes = hidden, head, weights, *targets[loss]
    return jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile(), shapes


@every_loss
def test_memory_is_a_fifth_of_the_definition(loss):
    chunked, reference = (
        compiled(loss, 151_936, name)[0].memory_analysis().temp_size_in_bytes
        for name in ("chunked", "reference")
    )
    print(f"{loss}: temporaries {chunked / 2**30:.2f} GiB, definition {reference / 2**30:.2f} GiB")
    assert chunked <= reference / 5


def values(shape):
    """Small numbers, log-probabilities that leave a tail, or different indices in every row."""
    rng = np.random.default_rng(0)
    if shape.dtype == jnp.int32:
        different = np.argsort(rng.random((TOKENS, 2 * K)), axis=-1).astype(np.int32)
        return jnp.asarray(different[:, :K] if len(shape.shape) == 2 else different[:, 0])
    if shape.shape == (TOKENS, K):
        return jnp.log(jnp.asarray(rng.uniform(0, 1 / K, shape.shape), jnp.float32))
    return jnp.asarray(0.1 * rng.standard_normal(shape.shape), jnp.float32)


@pytest.mark.slow
@every_loss
def test_gradients_take_no_longer_than_the_definition(loss):
    """At a vocabulary of 16,384, so that the definition fits in memory; in turns, best of three."""
    runs = {name: compiled(loss, 16_384, name) for name in ("chunked", "reference")}
    seconds = {name: [] for name in runs}
    arrays = [values(shape) for shape in runs["chunked"][1]]
    for _ in range(3):
        for name, (run, _) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            seconds[name].append(time.perf_counter() - start)
    print(f"{loss}: seconds {seconds}")
    assert min(seconds["chunked"]) <= min(seconds["reference"])
