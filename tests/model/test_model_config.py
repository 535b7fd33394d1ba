import dataclasses

import pytest
from tiny_decoders import TEACHER, tiny_hybrid

from hypenet_jax.model.config import MixerOptions, hypenet, with_logit_scale, with_rope_scaling
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec
from hypenet_jax.model.rope_scaling import YarnScaling


def test_named_layers_keep_softmax_without_positions_and_with_a_gate():
    student = hypenet(TEACHER, (3, 1))
    assert student.softmax_layers == (1, 3)
    assert student.mixers[1] == SoftmaxSpec(4, 2, 8, rope_theta=None, output_gate=True)
    assert student.mixers[0] == LightningSpec(4, 8, rope_theta=1e4)
    assert dataclasses.replace(student, mixers=TEACHER.mixers) == TEACHER


def test_rotary_positions_stay_in_softmax_layers_where_asked():
    assert hypenet(TEACHER, (0,), softmax=MixerOptions(rope=True)).mixers[0].rope_theta == 1e4


@pytest.mark.parametrize("layers", [(4,), (-1,), (0, 0)])
def test_layers_out_of_range_or_named_twice_are_refused(layers):
    with pytest.raises(ValueError, match="distinct indices from 0 to 3"):
        hypenet(TEACHER, layers)


def test_a_student_is_no_teacher():
    with pytest.raises(ValueError, match="layer 1 of the teacher is not softmax attention"):
        hypenet(tiny_hybrid(), (0, 3))


def test_runs_are_maximal_ranges_of_equal_mixers():
    assert tiny_hybrid().layer_groups == (range(1), range(1, 3), range(3, 4))
    assert TEACHER.layer_groups == (range(4),)


def test_the_logit_scale_is_set_in_softmax_layers_alone():
    scaled = with_logit_scale(tiny_hybrid(), LogLengthScale(500.0))
    assert [scaled.mixers[i].logit_scale for i in (0, 3)] == [LogLengthScale(500.0)] * 2
    assert scaled.mixers[1:3] == tiny_hybrid().mixers[1:3]


def test_rotary_frequencies_are_scaled_where_there_are_rotary_positions_alone():
    yarn = YarnScaling(4.0, 128)
    scaled = with_rope_scaling(tiny_hybrid(), yarn)
    assert [scaled.mixers[i].rope_scaling for i in (1, 2)] == [yarn] * 2
    assert [scaled.mixers[i] for i in (0, 3)] == [tiny_hybrid().mixers[i] for i in (0, 3)]
    assert with_rope_scaling(scaled, None) == tiny_hybrid()
    without = dataclasses.replace(scaled, mixers=(scaled.mixers[0],) * 4)
    with pytest.raises(ValueError, match="no layer has rotary positions for YarnScaling"):
        with_rope_scaling(without, yarn)


def test_query_heads_must_share_key_heads_evenly():
    with pytest.raises(ValueError, match="not a multiple"):
        SoftmaxSpec(6, 4, 8)
    with pytest.raises(ValueError, match="not a multiple"):
        LightningSpec(6, 8, 1e4, num_kv_heads=4)
    assert LightningSpec(6, 8, 1e4, num_kv_heads=6) == LightningSpec(6, 8, 1e4)
