"""Rates of a stage's parts, by mixer and by path, and what they leave out of the state."""

import dataclasses

import jax
import optax
import pytest
from flax.traverse_util import flatten_dict
from tiny_chain import chain

from hypenet_jax.config import StudentConfig
from hypenet_jax.config_file import ConfigError
from hypenet_jax.convert import convert
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.sharding import MeshConfig, make_mesh


@pytest.fixture
def with_rates(tmp_path):
    """`with_rates(*rates)`: a distillation whose second layer alone keeps softmax attention."""
    config = chain(tmp_path / "text", tmp_path / "run").stage("distill")
    assert config.training is not None

    def change(*rates, softmax_layers=(1,)):
        optimizer = dataclasses.replace(config.training.optimizer, rates=rates)
        return dataclasses.replace(
            config,
            student=StudentConfig(softmax_layers=softmax_layers),
            training=dataclasses.replace(config.training, optimizer=optimizer),
        )

    return change


@pytest.fixture
def built(with_rates):
    """The program of what `with_rates` gives."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return lambda *rates, **fields: build_stage(with_rates(*rates, **fields), mesh)


def test_a_mixers_name_stands_for_all_its_layers_and_what_is_frozen_has_no_moments(built):
    program = built(("softmax/mixer/*", 0.0), ("lightning/*", 0.5), ("embed/*", 0.0))
    state = program.state()
    moments = {*flatten_dict(optax.tree.get(state.opt_state, "mu"))}
    frozen = {*flatten_dict(state.params)} - moments
    groups = {path[0] for path in frozen}
    assert {path[1] for path in frozen - {("embed", "embedding")}} == {"mixer"}
    assert groups == {"embed", "layers_1_1"}
    rates = program.optimizer.config.rates
    assert ("layers_0_0/*", 0.5) in rates
    assert ("layers_1_1/mixer/*", 0.0) in rates


def test_without_rates_all_is_trained_by_the_optimizer_that_the_config_has(built):
    program = built()
    moments = optax.tree.get(program.state().opt_state, "mu")
    assert flatten_dict(moments).keys() == flatten_dict(program.shapes).keys()
    assert program.optimizer.config.rates == ()


def test_a_mixer_that_no_layer_has_and_a_path_that_is_not_there_are_refused(built):
    with pytest.raises(ValueError, match="layers_9_9"):
        built(("layers_9_9/*", 0.0))
    with pytest.raises(ConfigError, match=r"rates name lightning/\*, and no layer has a mixer"):
        built(("lightning/*", 0.0), softmax_layers=(0, 1))


def test_a_chain_whose_last_stage_has_such_a_path_does_not_begin(with_rates, tmp_path):
    config = chain(tmp_path / "text", tmp_path / "run")
    last = with_rates(("layers_9_9/*", 0.0))
    with pytest.raises(ValueError, match="layers_9_9"):
        convert(dataclasses.replace(config, stages=(*config.stages[:3], last)))
    assert not (tmp_path / "run").exists()
