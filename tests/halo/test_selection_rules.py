"""Rules of selection: what they make of scores, what they choose, and how sure it is."""

import json
import pathlib

import numpy as np
import pytest

from hypenet_jax.halo.selection.budget import decode_bytes, most_layers
from hypenet_jax.halo.selection.chosen import read_selection, scored_selection, write_selection
from hypenet_jax.halo.selection.rules import (
    RULES,
    confidence,
    halo_importance,
    keep_layers,
    ranked,
    uniform_layers,
)
from hypenet_jax.halo.selection.score_files import read_scores
from hypenet_jax.halo.selection.scores import Score, collect
from hypenet_jax.model.presets import (
    HYPENET_2B_SOFTMAX_LAYERS,
    HYPENET_5B_SOFTMAX_LAYERS,
    HYPENET_9B_SOFTMAX_LAYERS,
)
from hypenet_jax.testing import tiny_teacher

LAYERS = 8
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def scored(kind, means, base=None, questions=1, task="task"):
    """Scores of a kind, equal for all questions."""
    models = {**dict(enumerate(means)), **({} if base is None else {None: base})}
    return [
        Score(layer=layer, kind=kind, task=task, values=(float(mean),) * questions)
        for layer, mean in models.items()
    ]


@pytest.fixture(params=range(5))
def columns(request):
    """Retrieval and common sense of eight layers."""
    return np.random.default_rng(request.param).uniform(0.2, 0.9, (2, LAYERS))


def test_importance_lies_between_zero_and_fifty(columns):
    importance = halo_importance(*columns)
    assert ((importance >= 0) & (importance <= 50)).all()


def test_importance_is_lost_retrieval_per_lost_common_sense(columns):
    retrieval, sense = columns
    i = int(np.argmin(sense))
    wanted = (retrieval.max() - retrieval[i]) / (sense.max() - sense[i] + 1e-10)
    assert halo_importance(retrieval, sense)[i] == pytest.approx(min(50, wanted))


def test_the_layer_of_best_common_sense_has_fifty(columns):
    retrieval, sense = columns
    best = int(np.argmax(sense))
    retrieval[best] = retrieval.max() - 0.1
    assert halo_importance(retrieval, sense)[best] == 50


def test_the_layer_of_best_retrieval_has_zero_even_with_best_common_sense(columns):
    retrieval, sense = columns
    best = int(np.argmax(sense))
    retrieval[best] = 1.0
    assert halo_importance(retrieval, sense)[best] == 0


def test_importance_does_not_change_when_all_scores_shift(columns):
    retrieval, sense = columns
    shifted = halo_importance(retrieval + 3.0, sense - 5.0, eps=0.01)
    np.testing.assert_allclose(shifted, halo_importance(retrieval, sense, eps=0.01), rtol=1e-9)


def test_a_larger_eps_lowers_every_importance(columns):
    assert (halo_importance(*columns, eps=0.1) <= halo_importance(*columns, eps=0.01)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_scores_that_are_not_finite_are_refused(columns, which, bad):
    columns[which, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        halo_importance(*columns)


def test_the_most_important_layers_are_kept_in_order_of_depth():
    assert keep_layers(np.asarray([1.0, 9.0, 3.0, 7.0]), 2) == (1, 3)
    assert keep_layers(np.asarray([1.0, 9.0, 3.0, 7.0]), 3) == (1, 2, 3)


def test_of_equally_important_layers_the_deeper_is_kept():
    assert keep_layers(np.asarray([50.0, 2.0, 50.0, 50.0]), 2) == (2, 3)
    assert keep_layers(np.zeros(4), 1) == (3,)


def test_none_or_all_layers_may_be_kept_and_no_other_number():
    assert keep_layers(np.ones(3), 0) == uniform_layers(3, 0) == ()
    assert keep_layers(np.ones(3), 3) == uniform_layers(3, 3) == (0, 1, 2)
    for k in (-1, 4):
        for choose in (lambda k: keep_layers(np.ones(3), k), lambda k: uniform_layers(3, k)):
            with pytest.raises(ValueError, match="use 0 to 3"):
                choose(k)


def test_uniform_layers_end_equal_parts_of_the_model():
    assert uniform_layers(28, 7) == (3, 7, 11, 15, 19, 23, 27)
    assert np.diff(uniform_layers(30, 7)).tolist() == [4, 4, 5, 4, 4, 5]


def test_by_likelihood_the_layers_whose_loss_costs_most_are_kept():
    retrieval, sense = (0.7, 0.7, 0.8, 0.7), (-2.8, -2.9, -2.81, -3.0)
    scores = collect(scored("retrieval", retrieval) + scored("commonsense", sense), 4)
    made = scored_selection("likelihood", scores, keep=2)
    assert made.softmax_layers == (1, 3)
    np.testing.assert_allclose(made.importance, (0.0, 0.1, 0.01, 0.2), atol=1e-9)
    assert scored_selection("halo", scores, keep=2, eps=0.01).softmax_layers == (0, 1)


@pytest.mark.parametrize(
    ("rule", "kind", "wanted"),
    [
        ("jet", "retrieval", (0.2, 0.5, -0.1)),  # what the teacher had more
        ("kl", "kl", (0.3, 0.6, 0.0)),  # what restoring the layer saves
        ("mse", "mse", (0.5, 0.2, 0.8)),
    ],
)
def test_each_rule_ranks_by_what_it_is_named_for(rule, kind, wanted):
    scores = collect(scored(kind, (0.5, 0.2, 0.8), base=0.7), 3)
    np.testing.assert_allclose(RULES[rule].importance(scores, 0.0), wanted, atol=1e-12)


def test_jet_needs_the_unmodified_teacher_and_every_rule_its_kind():
    scores = collect(scored("retrieval", (0.5, 0.2)), 2)
    with pytest.raises(ValueError, match=r"unmodified teacher has no score in .'task'.*layer null"):
        scored_selection("jet", scores, keep=1)
    with pytest.raises(ValueError, match=r"no scores of kind 'kl'; there are retrieval"):
        scored_selection("kl", scores, keep=1)


def test_tasks_of_a_kind_count_the_same_however_many_questions_they_have():
    many = scored("retrieval", (1.0, 0.0), questions=5, task="many")
    scores = collect(many + scored("retrieval", (0.0, 0.5), task="one"), 2)
    np.testing.assert_allclose(scores.of("retrieval"), (0.5, 0.25))


@pytest.mark.parametrize(
    ("size", "published"),
    [("2b", HYPENET_2B_SOFTMAX_LAYERS), ("9b", HYPENET_9B_SOFTMAX_LAYERS)],
)
def test_the_published_scores_give_the_published_layers(size, published):
    layers = 28 if size == "2b" else 36
    scores = read_scores(CONFIGS / f"halo_{size}" / "scores.jsonl", layers)
    made = scored_selection("halo", scores, keep=len(published))
    assert made.softmax_layers == published
    assert made.confidence is None  # they are means


def test_the_published_scores_of_5b_rank_34_above_31_which_is_what_was_published():
    scores = read_scores(CONFIGS / "halo_5b" / "scores.jsonl", 36)
    order = ranked(RULES["halo"].importance(scores, 1e-10))
    assert set(order[:9]) - set(HYPENET_5B_SOFTMAX_LAYERS) == {34}
    assert order[9] == 31


def test_the_published_scores_of_2b_are_the_recorded_ones():
    recorded = json.loads((CONFIGS.parent / "tests/golden/layer_selection_2b.json").read_text())
    scores = read_scores(CONFIGS / "halo_2b" / "scores.jsonl", 28)
    for kind in ("retrieval", "commonsense"):
        means = [layer[f"{kind}_average"] for layer in recorded["layers"]]
        np.testing.assert_allclose(scores.of(kind), means, rtol=1e-12)
    lost = [layer["importance_jet_nemotron_mode"] for layer in recorded["layers"]]
    np.testing.assert_allclose(RULES["jet"].importance(scores, 0.0), lost, atol=1e-12)


def noisy(questions, spread=0.5, seed=0):
    """Layers whose true retrieval falls with their number, asked so many questions."""
    rng = np.random.default_rng(seed)
    values = 0.1 * np.arange(LAYERS)[:, None] + rng.normal(0, spread, (LAYERS, questions))
    return collect(
        [
            Score(layer=i, kind="commonsense", task="t", values=tuple(row))
            for i, row in enumerate(values.tolist())
        ],
        LAYERS,
    )


def sure(scores, keep=2, resamples=60, seed=0):
    numbers = {"eps": 0.0, "keep": keep, "resamples": resamples, "seed": seed}
    return confidence(RULES["likelihood"], scores, **numbers)


def test_confidence_holds_the_rank_and_the_shares_of_what_is_kept_sum_to_how_many():
    scores = noisy(40)
    made, order = sure(scores), ranked(RULES["likelihood"].importance(scores, 0.0))
    assert sum(made.kept) == pytest.approx(2)
    for rank, layer in enumerate(order, 1):
        assert made.rank_low[layer] <= rank <= made.rank_high[layer]


def test_more_questions_make_a_ranking_surer():
    few, many = (sure(noisy(questions)) for questions in (10, 2000))
    width = lambda made: np.mean(np.subtract(made.rank_high, made.rank_low))  # noqa: E731
    assert width(many) < 0.3 * width(few)
    assert sorted(many.kept)[-2:] == [1.0, 1.0]


def test_resamples_are_those_of_their_seed_and_the_same_questions_for_all_layers():
    scores = noisy(10)
    assert sure(scores) == sure(scores)
    assert sure(scores) != sure(scores, seed=1)
    # Where a question is hard for all layers alike, drawing it twice changes no rank.
    alike = np.random.default_rng(0).normal(size=20)
    layers = [
        Score(layer=i, kind="commonsense", task="t", values=tuple((alike + 0.01 * i).tolist()))
        for i in range(LAYERS)
    ]
    made = sure(collect(layers, LAYERS))
    assert made.rank_low == made.rank_high


def test_means_alone_and_no_resamples_tell_no_confidence():
    assert sure(noisy(1)) is None
    assert sure(noisy(10), resamples=0) is None


def test_a_selection_file_gives_back_the_selection(tmp_path):
    made = scored_selection("likelihood", noisy(5), keep=2, resamples=10)
    assert made.confidence is not None
    write_selection(tmp_path / "selection.json", made)
    read = read_selection(tmp_path / "selection.json")
    assert read == made
    assert keep_layers(np.asarray(read.importance), 2) == read.softmax_layers


def test_a_selection_of_an_older_version_is_read(tmp_path):
    older = {"retrieval": [0.5, 0.4], "commonsense": [0.1, 0.2], "importance": [0.0, 50.0]}
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({**older, "softmax_layers": [1], "eps": 0.01}))
    read = read_selection(path)
    assert (read.rule, read.softmax_layers, read.scores["retrieval"]) == (None, (1,), (0.5, 0.4))


def test_a_missing_selection_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the select stage"):
        read_selection(tmp_path / "selection.json")


def test_a_budget_gives_the_most_layers_that_it_has_room_for():
    teacher, count, room = tiny_teacher(layers=6), 6, {"tokens": 100_000}
    cost = [decode_bytes(teacher, "lightning", kept, 100_000) for kept in (0, 2, 3, count)]
    for kept, at_most in ((2, cost[1]), (2, cost[2] - 1), (3, cost[2]), (count, 2 * cost[3])):
        assert most_layers(teacher, "lightning", at_most=at_most, **room) == kept
    with pytest.raises(ValueError, match="too few for any number"):
        most_layers(teacher, "lightning", at_most=cost[0] - 1, **room)
