"""Equal programs of different tests are compiled once."""

import gc

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compiled_once(tmp_path_factory):
    cache = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in cache}
    for name, value in cache.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def collected():
    """Garbage of this test is collected before the next one, which would be blamed for it."""
    yield
    gc.collect()
