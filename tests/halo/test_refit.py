"""The refit between selection and distillation: the student's stream nears the teacher's, sublayer after sublayer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.closed_form.student_fit import neutral_student
from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.halo.transfer import with_neutral_gates
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.sharding import MeshConfig, on_mesh

pytestmark = [pytest.mark.extended, pytest.mark.brief]

REFIT = RefitConfig(start_from="align", batches=1)
MIXED = {"devices": 8, "mesh_config": MeshConfig(fsdp=2, sequence=2, tensor=2)}


def gap(work, teacher, params, batch):
    """Squared gap of the last hidden states at real tokens."""
    text = batch.tokens, batch.positions, batch.segment_ids
    read = jax.jit(lambda params: work.models.student.apply({"params": params}, *text).hidden)
    real = np.asarray(batch.segment_ids) != 0
    return float(np.mean(np.square(np.asarray(read(params)) - teacher.hidden(batch))[real]))


def test_errors_fall_in_every_sublayer_and_the_student_nears_its_teacher(teacher, rows, work_with):
    seen = []

    def fit(number, count, kernel, solve):
        fitted, values = solve()
        seen.append((number, count, values))
        return fitted

    work = work_with([rows], fit=fit)
    with on_mesh(work.mesh):
        start = stack_layers(neutral_student(work, work.models), work.models.student.config)
    refitted = REFIT.run(work)
    assert gap(work, teacher, refitted, rows) < 0.5 * gap(work, teacher, start, rows)
    assert [(number, count) for number, count, _ in seen] == [(i, 4) for i in range(4)]
    for number, _, values in seen:
        sublayer = ("mixer", "mlp")[number % 2]
        assert values["layer"] == number // 2
        assert values["tokens"] == np.sum(np.asarray(rows.segment_ids) != 0)
        assert values[f"{sublayer}/after"] < values[f"{sublayer}/before"]


def test_only_output_projections_move(rows, work_with):
    work = work_with([rows])
    with on_mesh(work.mesh):
        before = neutral_student(work, work.models)
    after = unstack_layers(REFIT.run(work))
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = after
        for key in path:
            found = found[key.key]
        moved = name.endswith(("mixer/o/kernel", "mlp/down/kernel"))
        assert np.array_equal(found, leaf) is not moved, name


def test_padding_changes_nothing(rows, work_with, spoiled):
    plain, other = (REFIT.run(work_with([text])) for text in (rows, spoiled(rows)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, other)


@pytest.mark.slow
def test_eight_devices_refit_the_student_of_one(rows, work_with):
    alone, shared = (REFIT.run(work_with([rows], **mesh)) for mesh in ({}, MIXED))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), shared, alone)


def test_neutral_gates_leave_a_kept_layer_what_it_was_without_one(teacher, work_with):
    config = work_with([]).models.student.config
    student = {
        **teacher.single,
        "layer_1": {
            **teacher.single["layer_1"],
            "mixer": {
                **teacher.single["layer_1"]["mixer"],
                "gate": {"kernel": jnp.ones((16, 4, 8))},
            },
        },
    }
    mixer = with_neutral_gates(student, config)["layer_1"]["mixer"]
    np.testing.assert_array_equal(mixer["gate"]["kernel"], 0.0)
    np.testing.assert_array_equal(
        0.5 * mixer["o"]["kernel"], teacher.single["layer_1"]["mixer"]["o"]["kernel"]
    )


@pytest.mark.parametrize("fields", [{"batches": 0}, {"batches": 1, "ridge": 0.0}])
def test_settings_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match="batches must be at least 1, and ridge above 0"):
        RefitConfig(start_from="align", **fields)
