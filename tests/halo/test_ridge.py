"""The ridge start of stage 1: every output projection by least squares on what its teacher mixer writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.align import AlignConfig
from hypenet_jax.halo.closed_form.ridge import ridge_start
from hypenet_jax.halo.imitation import imitate
from hypenet_jax.model.config import aligned_spec

pytestmark = pytest.mark.brief

RIDGE = 1e-2


@pytest.fixture
def started(mixers, work_with):
    """Stage 1's mixers as they start from these batches."""
    return lambda *batches: ridge_start(
        work_with([*batches]), len(batches), RIDGE, {"mixers": mixers}
    )["mixers"]


def features_of(teacher, mixers, batch):
    """What every mixer gives its output projection, "L B T I": projections that copy D features at a time."""
    spec, width = aligned_spec(teacher.config), teacher.config.d_model
    shape = mixers["o"]["kernel"].shape
    inputs, parts = shape[1] * shape[2], []
    read = jax.jit(lambda o: imitate(spec, {"mixers": {**mixers, "o": {"kernel": o}}}, *rest))
    rest = teacher.decoder, teacher.taps(batch), batch
    for first in range(0, inputs, width):
        copy = np.eye(inputs, dtype=np.float32)[:, first : first + width]
        parts.append(read(jnp.broadcast_to(copy.reshape(shape[1:]), shape)))
    return np.concatenate(parts, axis=-1)


def test_the_output_projections_are_numpys_ridge_regression_on_the_teachers_taps(
    teacher, batch, started
):
    mixers = started(batch)
    np.testing.assert_array_equal(mixers["gate"]["kernel"], 0.0)
    real = np.asarray(batch.segment_ids) != 0
    features, taps = features_of(teacher, mixers, batch), teacher.taps(batch)
    for i, kernel in enumerate(mixers["o"]["kernel"]):
        f, y = features[i][real].astype(np.float64), np.asarray(taps.outputs[i])[real]
        strength = np.sqrt(RIDGE * np.mean(np.sum(np.square(f), axis=0)))
        rows = np.vstack([f, strength * np.eye(f.shape[1])])
        wanted = np.vstack([y, np.zeros((f.shape[1], y.shape[1]))])
        solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(
            kernel.reshape(solution.shape), solution, atol=1e-4 * np.abs(solution).max()
        )


def test_errors_start_far_below_those_of_the_copied_projections(mixers, batch, work_with):
    seen = []

    def fit(number, count, kernel, solve):
        fitted, values = solve()
        seen.append((number, count, values["layer"]))
        assert values["mixer/after"] < 0.2 * values["mixer/before"]
        return fitted

    ridge_start(work_with([batch], fit=fit), 1, RIDGE, {"mixers": mixers})
    assert seen == [(0, 2, 0), (1, 2, 1)]


def test_documents_and_padding_count_as_rows_of_their_own(batch, started, unpacked, spoiled):
    packed = started(batch)["o"]["kernel"]
    for other in (spoiled(batch), unpacked(batch)):
        found = started(other)["o"]["kernel"]
        np.testing.assert_allclose(found, packed, atol=1e-4 * np.abs(packed).max())


def test_training_begins_after_the_batches_that_were_read(work_with, batch):
    asked = {}

    def train(start, first_batch):
        asked.update(start=start, first_batch=first_batch)
        return {}

    AlignConfig(ridge_batches=2).run(work_with([batch], train=train))
    assert asked["first_batch"] == 2
    AlignConfig().run(work_with([batch], train=lambda: asked.clear() or {}))
    assert not asked  # the official start takes no arguments


@pytest.mark.parametrize("fields", [{"ridge_batches": -1}, {"ridge": 0.0}])
def test_settings_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match="must not be negative, and ridge above 0"):
        AlignConfig(**fields)
