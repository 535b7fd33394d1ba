"""What tests of training share."""

import gc

import pytest


@pytest.fixture
def collected():
    """Garbage of this test is collected before the next one, which would be blamed for it."""
    yield
    gc.collect()
