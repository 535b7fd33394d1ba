"""Eight virtual CPU devices, strict rank promotion, and the marks that need hardware."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # its compiler needs no GPU

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

BRIEF = ("evals", "halo", "convert")
"""Folders whose programs run once or twice: compiling them for speed does not pay."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around a test and the fixtures that it is first to ask for, whatever their scope."""
    jax.config.update("jax_disable_most_optimizations", item.path.parent.name in BRIEF)
    outcome = yield
    jax.config.update("jax_disable_most_optimizations", False)
    return outcome


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
