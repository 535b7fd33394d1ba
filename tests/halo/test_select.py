"""The choice of softmax layers: the score, the ranking, its file, and the decoder that is swept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.select import (
    SelectConfig,
    Selection,
    SweptDecoder,
    halo_importance,
    keep_layers,
    read_selection,
    select,
    swept_params,
    write_selection,
)
from hypenet_jax.halo.transfer import with_mixers
from hypenet_jax.model.config import aligned_spec
from hypenet_jax.model.stacking import stack_layers

pytestmark = pytest.mark.brief


@pytest.fixture(params=range(5))
def scores(request):
    """Retrieval and common sense of eight layers."""
    return np.random.default_rng(request.param).uniform(0.2, 0.9, (2, 8))


def test_importance_lies_between_zero_and_fifty(scores):
    importance = halo_importance(*scores)
    assert ((importance >= 0) & (importance <= 50)).all()


def test_importance_is_lost_retrieval_per_lost_common_sense(scores):
    retrieval, sense = scores
    i = int(np.argmin(sense))
    wanted = (retrieval.max() - retrieval[i]) / (sense.max() - sense[i] + 1e-10)
    assert halo_importance(retrieval, sense)[i] == pytest.approx(min(50, wanted))


def test_the_layer_of_best_common_sense_has_fifty(scores):
    retrieval, sense = scores
    best = int(np.argmax(sense))
    retrieval[best] = retrieval.max() - 0.1
    assert halo_importance(retrieval, sense)[best] == 50


def test_the_layer_of_best_retrieval_has_zero_even_with_best_common_sense(scores):
    retrieval, sense = scores
    best = int(np.argmax(sense))
    retrieval[best] = 1.0
    assert halo_importance(retrieval, sense)[best] == 0


def test_importance_does_not_change_when_all_scores_shift(scores):
    retrieval, sense = scores
    shifted = halo_importance(retrieval + 3.0, sense - 5.0, eps=0.01)
    np.testing.assert_allclose(shifted, halo_importance(retrieval, sense, eps=0.01), rtol=1e-9)


def test_a_larger_eps_lowers_every_importance(scores):
    assert (halo_importance(*scores, eps=0.1) <= halo_importance(*scores, eps=0.01)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_scores_that_are_not_finite_are_refused(scores, which, bad):
    scores[which, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        halo_importance(*scores)


def test_the_most_important_layers_are_kept_in_order_of_depth():
    assert keep_layers(np.asarray([1.0, 9.0, 3.0, 7.0]), 2) == (1, 3)
    assert keep_layers(np.asarray([1.0, 9.0, 3.0, 7.0]), 3) == (1, 2, 3)


def test_of_equally_important_layers_the_deeper_is_kept():
    assert keep_layers(np.asarray([50.0, 2.0, 50.0, 50.0]), 2) == (2, 3)
    assert keep_layers(np.zeros(4), 1) == (3,)


def test_none_or_all_layers_may_be_kept_and_no_other_number():
    assert keep_layers(np.ones(3), 0) == ()
    assert keep_layers(np.ones(3), 3) == (0, 1, 2)
    for k in (-1, 4):
        with pytest.raises(ValueError, match="use 0 to 3"):
            keep_layers(np.ones(3), k)


def test_by_likelihood_the_layers_whose_loss_costs_most_are_kept():
    retrieval, sense = np.asarray([0.7, 0.7, 0.8, 0.7]), np.asarray([-2.8, -2.9, -2.81, -3.0])
    made = select(retrieval, sense, keep=2, eps=0.01, rule="likelihood")
    assert made.softmax_layers == (1, 3)
    np.testing.assert_allclose(made.importance, (0.0, 0.1, 0.01, 0.2), atol=1e-9)
    assert select(retrieval, sense, keep=2, eps=0.01).softmax_layers == (0, 1)


def test_a_selection_file_gives_back_the_selection(tmp_path, scores):
    made = select(*scores, keep=2, eps=0.01)
    write_selection(tmp_path / "selection.json", made)
    read = read_selection(tmp_path / "selection.json")
    assert read == made
    assert keep_layers(np.asarray(read.importance), 2) == read.softmax_layers
    assert isinstance(read, Selection)


def test_a_missing_selection_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the select stage"):
        read_selection(tmp_path / "selection.json")


def test_a_stage_scores_each_layer_with_that_layer_replaced(tmp_path, work_with):
    seen = []

    def score(layer, decoder, params, rows):
        seen.append((layer, int(params["replaced"]), rows))
        return 0.5 + layer, -1.0 * layer

    work = work_with([], score=score)
    assert SelectConfig(start_from="align", keep=1, rows=3).run(work) is work.weights.parent
    assert seen == [(0, 0, 3), (1, 1, 3)]
    selection = read_selection(tmp_path / "selection.json")
    assert (selection.retrieval, selection.commonsense) == ((0.5, 1.5), (0.0, -1.0))


@pytest.fixture(scope="module")
def swept(teacher, mixers):
    """(replaced layer, batch) -> hidden states; one program for every layer."""
    decoder = SweptDecoder(teacher.decoder, aligned_spec(teacher.config))

    @jax.jit
    def read(params, batch):
        text = (batch.tokens, batch.positions, batch.segment_ids)
        return decoder.apply({"params": params}, *text).hidden

    return lambda layer, batch: read(swept_params(teacher.params, mixers, layer), batch)


def test_replacing_no_layer_is_the_teacher(teacher, batch, swept):
    np.testing.assert_allclose(swept(-1, batch), teacher.hidden(batch), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_replacing_a_layer_is_a_decoder_of_that_plan(teacher, mixers, batch, swept, layer):
    plan = list(teacher.config.mixers)
    plan[layer] = aligned_spec(teacher.config)
    config = dataclasses.replace(teacher.config, mixers=tuple(plan))
    params = stack_layers(with_mixers(teacher.single, config, mixers), config)
    real = dataclasses.replace(teacher, decoder=teacher.decoder.clone(config=config), params=params)
    np.testing.assert_allclose(swept(layer, batch), real.hidden(batch), atol=1e-5)
    assert np.abs(swept(layer, batch) - teacher.hidden(batch)).max() > 1e-2


def test_logits_of_a_swept_decoder_are_those_of_the_teachers_head(teacher, mixers):
    hidden = jnp.ones((1, 2, teacher.config.d_model))
    params = swept_params(teacher.params, mixers, 0)
    ours = SweptDecoder(teacher.decoder, aligned_spec(teacher.config)).apply(
        {"params": params}, hidden, method="logits"
    )
    wanted = teacher.decoder.apply({"params": teacher.params}, hidden, method="logits")
    np.testing.assert_array_equal(ours, wanted)
