"""Stage 0: what a student takes over from its teacher, and what is new in it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.transfer import transfer, transfer_mixers, with_mixers, with_neutral_gates
from hypenet_jax.model.config import MixerOptions, aligned_spec, hypenet
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.stacking import stack_layers

pytestmark = pytest.mark.brief


@pytest.fixture(scope="module")
def student(teacher):
    """Layer 0 lightning, layer 1 softmax, single layers."""
    config = hypenet(teacher.config, (1,))
    return config, transfer(teacher.config, teacher.single, config, jax.random.key(0))


def test_everything_but_new_gates_and_widened_heads_is_the_teachers_bit_for_bit(teacher, student):
    ours = dict(jax.tree_util.tree_leaves_with_path(student[1]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(teacher.single):
        name = jax.tree_util.keystr(path)
        if "layer_0" in name and ("'k'" in name or "'v'" in name):
            continue
        np.testing.assert_array_equal(ours[path], leaf, err_msg=name)


@pytest.mark.parametrize("name", ["k", "v"])
def test_head_j_of_a_lightning_layer_is_key_value_head_j_over_group(teacher, student, name):
    ours = student[1]["layer_0"]["mixer"][name]["kernel"]
    theirs = teacher.single["layer_0"]["mixer"][name]["kernel"]
    group = ours.shape[1] // theirs.shape[1]
    assert group == 2
    for head in range(ours.shape[1]):
        np.testing.assert_array_equal(ours[:, head], theirs[:, head // group])


def test_the_output_norm_starts_at_one(student):
    np.testing.assert_array_equal(student[1]["layer_0"]["mixer"]["output_norm"]["scale"], 1.0)


def test_gates_of_lightning_layers_are_uniform_within_one_over_root_width(student):
    gate = np.asarray(student[1]["layer_0"]["mixer"]["gate"]["kernel"])
    bound = 1 / np.sqrt(gate.shape[0])
    assert np.abs(gate).max() <= bound
    assert np.abs(gate).max() > 0.98 * bound
    assert gate.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_gates_of_softmax_layers_are_normal_with_deviation_two_hundredths(student):
    gate = np.asarray(student[1]["layer_1"]["mixer"]["gate"]["kernel"])
    assert gate.std() == pytest.approx(0.02, rel=0.1)
    assert abs(gate.mean()) < 0.003


def test_gates_differ_between_layers_and_follow_the_key(teacher):
    spec = aligned_spec(teacher.config)
    made = [
        transfer_mixers(teacher.config, teacher.single, spec, jax.random.key(seed))["gate"]
        for seed in (0, 0, 1)
    ]
    first, same, other = (np.asarray(gate["kernel"]) for gate in made)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.extended
def test_a_bfloat16_teacher_gives_a_float32_student_of_the_same_values(teacher):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), teacher.single)
    config = hypenet(teacher.config, ())
    made = transfer(teacher.config, half, config, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(
        made["layer_1"]["mlp"]["up"]["kernel"], half["layer_1"]["mlp"]["up"]["kernel"]
    )


@pytest.mark.parametrize("rope", [True, False])
def test_all_layers_kept_with_neutral_gates_is_the_teacher(teacher, batch, rope):
    """A gate of zero weights is one half everywhere; without rotary positions it is the teacher without them."""
    config = hypenet(teacher.config, (0, 1), softmax=MixerOptions(rope=rope))
    params = transfer(teacher.config, teacher.single, config, jax.random.key(0))
    params = with_neutral_gates(params, config)
    plan = dataclasses.replace(
        teacher.config,
        mixers=tuple(dataclasses.replace(s, output_gate=False) for s in config.mixers),
    )
    original = dataclasses.replace(teacher, decoder=teacher.decoder.clone(config=plan))
    ours = dataclasses.replace(
        teacher,
        decoder=teacher.decoder.clone(config=config),
        params=stack_layers(params, config),
    )
    np.testing.assert_allclose(ours.hidden(batch), original.hidden(batch), atol=2e-5)


@pytest.mark.parametrize("tied_teacher", [True, False])
@pytest.mark.parametrize("tied_student", [True, False])
def test_heads_may_be_tied_on_either_side(teacher, model, tied_teacher, tied_student):
    config = dataclasses.replace(teacher.config, tie_embeddings=tied_teacher)
    source = model(config, 3).single
    plan = dataclasses.replace(hypenet(config, (0,)), tie_embeddings=tied_student)
    made = transfer(config, source, plan, jax.random.key(0))
    assert ("head" in made) is not tied_student
    if not tied_student:
        wanted = source["embed"]["embedding"] if tied_teacher else source["head"]["kernel"]
        np.testing.assert_array_equal(made["head"]["kernel"], wanted)


def test_stage_one_mixers_go_to_lightning_layers_only(teacher, student, mixers):
    config, params = student
    joined = with_mixers(params, config, mixers)
    assert joined["layer_1"] is params["layer_1"]
    assert joined["layer_0"]["mlp"] is params["layer_0"]["mlp"]
    jax.tree.map(
        lambda ours, stacked: np.testing.assert_array_equal(ours, stacked[0]),
        joined["layer_0"]["mixer"],
        mixers,
    )


@pytest.mark.parametrize(
    ("field", "value"), [("d_mlp", 20), ("vocab_size", 31), ("norm_eps", 1e-5)]
)
def test_models_that_differ_in_more_than_mixers_are_refused_by_name(teacher, field, value):
    other = dataclasses.replace(hypenet(teacher.config, ()), **{field: value})
    with pytest.raises(ValueError, match=field):
        transfer(teacher.config, teacher.single, other, jax.random.key(0))


@pytest.mark.parametrize(
    "mixers",
    [
        (SoftmaxSpec(4, 2, 8, 1e4), LightningSpec(4, 8, 1e4)),
        (SoftmaxSpec(4, 2, 8),) * 2,
        (SoftmaxSpec(4, 2, 8, 1e4), SoftmaxSpec(4, 2, 8, 1e6)),
    ],
)
def test_stage_one_refuses_a_teacher_of_unequal_or_position_free_layers(teacher, mixers):
    words = r"layer 1 of the teacher is not softmax|equal softmax layers with rotary positions"
    with pytest.raises(ValueError, match=words):
        aligned_spec(dataclasses.replace(teacher.config, mixers=mixers))
