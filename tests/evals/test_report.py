import math

import numpy as np
import pytest

from hypenet_jax.evals.report import (
    Report,
    Row,
    failure,
    report_from_json_lines,
    scored,
    share,
    wilson,
)

ROWS = (
    Row("needle", "b", 0.1 + 0.2, 64, 256, 0.2, 0.5),
    Row("needle", "a", 1 / 3, 64, 128),
    Row("importance", "a", -math.inf, 1, label="layer 3"),
    Row("kl", "a", math.nan, 5),
)


def test_json_lines_read_back_to_the_same_bits():
    text = Report(ROWS).to_json_lines()
    again = report_from_json_lines(text)
    assert again.to_json_lines() == text
    assert again.value("needle", "b") == 0.1 + 0.2
    assert again.value("importance", "a", label="layer 3") == -math.inf
    assert math.isnan(again.value("kl", "a"))


def test_json_lines_do_not_depend_on_the_order_of_measurement():
    assert Report(ROWS).to_json_lines() == Report(ROWS[::-1]).to_json_lines()
    assert (Report(ROWS[:2]) + Report(ROWS[2:])).rows == Report().add(*ROWS).rows == ROWS


def test_rows_are_selected_by_every_argument_given():
    report = Report(ROWS)
    assert report.select(metric="needle", length=128).rows == (ROWS[1],)
    assert report.models == ("b", "a")
    assert report.lengths == (128, 256)
    with pytest.raises(KeyError, match="2 rows have metric 'needle'"):
        Report((ROWS[0], ROWS[0])).value("needle", "b")
    with pytest.raises(KeyError, match="0 rows"):
        report.value("absent", "a")


def test_the_table_has_a_line_per_model_and_a_column_per_length():
    lines = Report(ROWS[:2]).table().splitlines()
    assert lines[0].split() == ["needle", "128", "256"]
    assert lines[1].split() == ["b", "0.3"]
    assert lines[1].index("0.3") + 3 == len(lines[0])
    assert "layer 3" in Report(ROWS).table()


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (7, 10)])
def test_the_interval_of_a_share_holds_it_and_stays_within_zero_and_one(hits, count):
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert low < high
    assert share("needle", "a", hits, count, length=8).low == low


def test_the_interval_of_a_share_is_the_published_one():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_scores_are_told_all_together_and_by_depth_and_failed_ones_do_not_count():
    found = np.asarray([1.0, 1.0, np.nan, 0.0, 0.5, 0.0, np.nan, np.nan])
    report = scored("needle", "a", found, length=64, task="one")
    (whole,) = report.select("needle").rows
    assert (whole.value, whole.count, whole.task) == (0.5, 5, "one")
    depths = [(r.depth, r.value, r.count) for r in report.select("needle_by_depth").rows]
    assert depths == [(0.125, 1.0, 2), (0.375, 0.0, 1), (0.625, 0.25, 2)]
    assert scored("needle", "a", np.full(3, np.nan), length=64).rows == ()
    assert "by_depth" not in report.table()
    again = report_from_json_lines(report.to_json_lines())
    assert again.select("needle_by_depth").rows == report.select("needle_by_depth").rows


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 18])
def test_every_question_counts_for_the_part_of_the_context_that_its_answer_lies_in(count):
    for i in range(count):
        found = np.full(count, np.nan)
        found[i] = 1.0
        (row,) = scored("needle", "a", found, length=64).select("needle_by_depth").rows
        assert abs(row.depth - (i + 0.5) / count) <= 0.125


def test_a_failure_says_what_why_and_how_many_on_one_line():
    row = failure("a", "vt", ValueError("too\nlong"), 64, 2)
    assert (row.metric, row.task, row.label) == ("failed", "vt", "too long")
    assert row.count == row.value == 2
