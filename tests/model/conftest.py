"""Models that the whole session shares: every test that can uses their shapes, so that little is compiled."""

import numpy as np
import pytest
from tiny_decoders import BATCH, TEACHER, TIME, VOCABULARY, Model, tiny_hybrid

from hypenet_jax.testing import random_params


@pytest.fixture(scope="session")
def hybrid() -> Model:
    return Model(tiny_hybrid(), random_params(tiny_hybrid()))


@pytest.fixture(scope="session")
def teacher() -> Model:
    return Model(TEACHER, random_params(TEACHER))


@pytest.fixture(scope="session", params=["teacher", "hybrid"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(7).integers(0, VOCABULARY, (BATCH, TIME)).astype(np.int32)
