"""The stage that selects: what it has scored, what it chooses, and the decoder that is swept."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.halo.refit import RefitConfig
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.halo.selection.budget import decode_bytes
from hypenet_jax.halo.selection.chosen import read_selection
from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import with_mixers
from hypenet_jax.model.config import aligned_spec
from hypenet_jax.model.stacking import stack_layers

pytestmark = pytest.mark.brief

SELECT = SelectConfig(start_from="align", keep=1, rows=3, resamples=20)


@pytest.fixture
def swept_by(work_with):
    """`swept_by(config, batches)`: (what was asked of each model, the selection)."""

    def run(config, batches=()):
        asked, kept = [], []

        def measure(kind, decoder, params, rows):
            replaced = np.flatnonzero(params["replaced"]).tolist()
            asked.append((kind, replaced, rows))
            return np.asarray([0.0, 1.0]) + len(replaced) + sum(replaced), np.asarray([1.0, 3.0])

        def keep(name, measure):
            kept.append(name)
            return measure()

        work = work_with([*batches], measure=measure, keep=keep)
        assert config.run(work) is work.weights.parent
        return asked, kept, read_selection(work.folder / "selection.json")

    return run


def test_a_stage_scores_each_layer_with_that_layer_replaced(swept_by):
    asked, kept, selection = swept_by(SELECT)
    kinds = ("retrieval", "commonsense")
    assert asked == [(kind, [layer], 3) for layer in (0, 1) for kind in kinds]
    assert kept == ["layer 0", "layer 1"]
    assert selection.scores == {kind: (1.75, 2.75) for kind in kinds}
    assert selection.confidence.resamples == 20


def test_the_rule_says_which_models_are_scored_in_what(swept_by):
    only = dataclasses.replace(SELECT, measure=())
    asked, kept, selection = swept_by(dataclasses.replace(only, rule="jet"))
    assert asked == [("retrieval", layers, 3) for layers in ([0], [1], [])]
    assert selection.teacher == {"retrieval": 0.75}
    asked, kept, _ = swept_by(dataclasses.replace(only, rule="kl"))
    assert asked == [("kl", layers, 3) for layers in ([1], [0])]  # all others are replaced
    assert kept == ["layer 0 restored", "layer 1 restored"]


def test_by_mse_the_layer_that_was_imitated_worst_is_kept(swept_by, batch):
    config = dataclasses.replace(SELECT, rule="mse", measure=())
    asked, kept, selection = swept_by(config, [batch])
    assert (asked, kept) == ([], ["imitations"])
    errors = np.asarray(selection.importance)
    assert selection.softmax_layers == (int(np.argmax(errors)),)
    assert (errors > 0.1).all()


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"rule": "uniform"}, (1,)),
        ({"rule": "uniform", "keep": 2}, (0, 1)),
        ({"rule": "explicit", "keep": None, "layers": (1, 0)}, (0, 1)),
    ],
)
def test_layers_that_are_placed_need_no_scores(swept_by, fields, layers):
    asked, kept, selection = swept_by(dataclasses.replace(SELECT, **fields))
    assert (asked, kept) == ([], [])
    assert (selection.rule, selection.softmax_layers) == (fields["rule"], layers)
    assert selection.importance is None


def test_scores_of_a_file_are_ranked_without_a_sweep(swept_by, tmp_path):
    path = tmp_path / "mine.jsonl"
    line = {"kind": "commonsense", "task": "t"}
    scores = [{**line, "layer": i, "scores": [-1.0, -1.5 - i]} for i in (0, 1)]
    path.write_text("".join(json.dumps(score) + "\n" for score in scores))
    config = dataclasses.replace(SELECT, rule="likelihood", scores=str(path))
    asked, kept, selection = swept_by(config)
    assert (asked, kept, selection.softmax_layers) == ([], [], (1,))
    assert config.files == (str(path),)


def test_a_budget_decides_how_many_are_kept(swept_by, teacher):
    cost = [decode_bytes(teacher.config, "lightning", kept, 5000) for kept in (1, 2)]
    for at_most, kept in ((cost[1] - 1, 1), (cost[1], 2)):
        room = {"keep": None, "decode_tokens": 5000, "decode_bytes": at_most}
        _, _, selection = swept_by(dataclasses.replace(SELECT, rule="uniform", **room))
        assert len(selection.softmax_layers) == kept


def test_greedy_restores_the_layer_whose_refitted_student_is_nearest(work_with, rows, teacher):
    config = dataclasses.replace(SELECT, rule="greedy", keep=2, refit_batches=1)
    kept = {}

    def keep(name, measure):
        return kept.setdefault(name, measure())

    work = work_with([rows], keep=keep)
    assert config.run(work) is work.weights.parent
    selection = read_selection(work.folder / "selection.json")
    assert [*kept] == ["softmax layers 0", "softmax layers 1", "softmax layers 0, 1"]
    alone = [kept[f"softmax layers {i}"][0].mean for i in (0, 1)]
    best = int(np.argmin(alone))
    both = kept["softmax layers 0, 1"][0].mean
    assert selection.steps == ((best, min(alone)), (1 - best, both))
    assert selection.softmax_layers == (0, 1)
    # The score is that of the refit stage's own student.
    work = work_with([rows], (best,))
    student = RefitConfig(start_from="align", batches=1).run(work)
    own, theirs = (
        np.asarray(jax.jit(log_probabilities, static_argnums=0)(decoder, params, rows))
        for decoder, params in (
            (work.models.student, student),
            (work.models.teacher, work.weights.teacher),
        )
    )
    kl = np.sum(np.exp(theirs) * (theirs - own), axis=-1)
    real = np.asarray(rows.segment_ids) != 0
    assert min(alone) == pytest.approx(kl[real].mean(), rel=1e-3)


def log_probabilities(decoder, params, batch):
    variables, text = {"params": params}, (batch.tokens, batch.positions, batch.segment_ids)
    hidden = decoder.apply(variables, *text).hidden
    return jax.nn.log_softmax(decoder.apply(variables, hidden, method="logits"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rule": "greedy"}, "refit_batches are those of the rule greedy"),
        ({"refit_batches": 1}, "refit_batches are those of the rule greedy"),
        ({"keep": None}, "give one of keep, decode_bytes"),
        ({"decode_bytes": 5}, "go together"),
        ({"decode_bytes": 5, "decode_tokens": 5}, "give one of keep, decode_bytes"),
        ({"rule": "explicit", "layers": (1,)}, "give one of keep"),
        ({"rule": "explicit", "keep": None}, "which needs them"),
        ({"layers": (1,)}, "layers are those of the rule explicit"),
        ({"rule": "uniform", "scores": "x.jsonl"}, "uniform reads no scores"),
        ({"rows": 0}, "rows must be at least 1"),
        ({"resamples": -1}, "not negative"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SELECT, **fields)


def test_the_rule_of_older_versions_is_named_with_those_of_today():
    config = dataclasses.replace(SELECT)
    object.__setattr__(config, "rule", "ratio")
    with pytest.raises(ValueError, match=r"no rule 'ratio'; there are halo, .*\(halo was ratio\)"):
        config.__post_init__()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": 3}, "use 0 to 2"),
        ({"rule": "explicit", "keep": None, "layers": (2,)}, "different ones from 0 to 1"),
        ({"rule": "explicit", "keep": None, "layers": (1, 1)}, "different ones from 0 to 1"),
    ],
)
def test_layers_that_the_model_lacks_are_refused_before_anything_is_scored(work_with, fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SELECT, **fields).run(work_with([]))


@pytest.fixture(scope="module")
def swept(teacher, mixers):
    """(replaced layers, batch) -> hidden states; one program for all."""
    decoder = SweptDecoder(teacher.decoder, aligned_spec(teacher.config))

    @jax.jit
    def read(params, batch):
        text = (batch.tokens, batch.positions, batch.segment_ids)
        return decoder.apply({"params": params}, *text).hidden

    return lambda layers, batch: read(swept_params(teacher.params, mixers, layers), batch)


def test_replacing_no_layer_is_the_teacher(teacher, batch, swept):
    np.testing.assert_allclose(swept((), batch), teacher.hidden(batch), atol=1e-5)


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_replacing_layers_is_a_decoder_of_that_plan(teacher, mixers, batch, swept, layers):
    plan = list(teacher.config.mixers)
    for layer in layers:
        plan[layer] = aligned_spec(teacher.config)
    config = dataclasses.replace(teacher.config, mixers=tuple(plan))
    params = stack_layers(with_mixers(teacher.single, config, mixers), config)
    real = dataclasses.replace(teacher, decoder=teacher.decoder.clone(config=config), params=params)
    np.testing.assert_allclose(swept(layers, batch), real.hidden(batch), atol=1e-5)
    assert np.abs(swept(layers, batch) - teacher.hidden(batch)).max() > 1e-2


def test_logits_of_a_swept_decoder_are_those_of_the_teachers_head(teacher, mixers):
    hidden = jnp.ones((1, 2, teacher.config.d_model))
    params = swept_params(teacher.params, mixers, (0,))
    ours = SweptDecoder(teacher.decoder, aligned_spec(teacher.config)).apply(
        {"params": params}, hidden, method="logits"
    )
    wanted = teacher.decoder.apply({"params": teacher.params}, hidden, method="logits")
    np.testing.assert_array_equal(ours, wanted)
