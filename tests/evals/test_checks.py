"""Checks: bounds, differences and ratios of rows, and what is not required."""

import pytest

from hypenet_jax.evals.checks import Check
from hypenet_jax.evals.report import Report, Row

REPORT = Report(
    (
        Row("needle", "a", 0.9, 8, 16),
        Row("needle", "b", 0.6, 8, 16),
        Row("gap", "a", 0.1, 1),
    )
)


@pytest.mark.parametrize(
    ("fields", "value", "passed"),
    [
        ({"at_least": 0.9}, "0.9", True),
        ({"at_most": 0.8}, "0.9", False),
        ({"at_least": 0.5, "at_most": 0.95}, "0.9", True),
        ({"minus": ("b", 16), "at_least": 0.0}, "0.3", True),
        ({"over": ("b", 16), "at_most": 1.4}, "1.5", False),
        ({"minus": ("c", 16), "at_least": 0.0}, "not measured", False),
    ],
)
def test_a_check_holds_if_its_number_lies_within_the_bounds(fields, value, passed):
    result = Check(metric="needle", model="a", length=16, **fields).result(REPORT)
    assert (result.value, result.passed, result.failed) == (value, passed, not passed)


def test_a_check_that_is_not_required_is_shown_and_fails_nothing():
    check = Check(metric="needle", model="a", length=16, at_least=1.0, required=False)
    result = check.result(REPORT)
    assert not result.passed
    assert not result.failed
    assert result.line() == "missed, not required needle of a at 16: 0.9, at least 1"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "needle of a at 16"),
        ({"minus": ("b", 16)}, "needle of a at 16, minus that of b"),
        ({"over": ("b", 16)}, "needle of a at 16, over that of b"),
        ({"text": "a keeps up", "minus": ("b", 16)}, "a keeps up"),
    ],
)
def test_a_check_is_named_by_its_text_or_by_its_row(fields, name):
    check = Check(metric="needle", model="a", length=16, at_least=0.0, **fields)
    assert check.result(REPORT).name == name
