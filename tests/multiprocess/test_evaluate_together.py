"""A suite measured by two processes with four devices each: the rows of one process, and the answers of one."""

import json
import pathlib

import numpy as np
import pytest
from processes import ROOT, starting

from hypenet_jax.evals.report import Report, report_from_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = ROOT / "tests" / "multiprocess"
# What a clock or the cut of a device's memory decides.
OF_THIS_RUN = ("_seconds", "_speedup", "_peak_bytes")


@pytest.fixture(scope="module")
def models(text, tmp_path_factory) -> pathlib.Path:
    """Written by a process of its own, as those that read them are."""
    folder = tmp_path_factory.mktemp("models")
    with starting(folder) as start:
        (member,) = start([str(HERE / "tiny_suite.py"), str(folder), str(text)])
        assert member.end() == 0, member.said()
    return folder


def evaluate(models: pathlib.Path, text: pathlib.Path, out: pathlib.Path, data: int, sequence: int):
    words = ["-m", "launch.evaluate", str(HERE / "tiny_suite.py"), "--folder", str(models)]
    words += ["--text", str(text), "--out", str(out)]
    return [*words, "--mesh.data", str(data), "--mesh.sequence", str(sequence)]


def write(models: pathlib.Path, text: pathlib.Path, out: pathlib.Path, data: int, sequence: int):
    said = next(text.iterdir()).read_text()
    return [
        str(HERE / "written.py"),
        str(models / "student"),
        said,
        str(out),
        str(data),
        str(sequence),
    ]


def report(out: pathlib.Path) -> Report:
    return report_from_json_lines((out / "report.jsonl").read_text())


@pytest.fixture(scope="module")
def alone(models, text, tmp_path_factory) -> pathlib.Path:
    """What one process with one device for each row finds."""
    out = tmp_path_factory.mktemp("alone")
    with starting(out) as start:
        group = [
            *start(evaluate(models, text, out, 8, 1)),
            *start(write(models, text, out / "w", 8, 1)),
        ]
        assert [member.end(800) for member in group] == [0, 0], [m.said() for m in group]
    return out


@pytest.fixture(scope="module", params=[(2, 4), (1, 8)], ids=["data 2, sequence 4", "sequence 8"])
def together(request, models, text, tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    """What two processes find, and what each of them said."""
    out = tmp_path_factory.mktemp("together")
    with starting(out) as start:
        group = []
        for words in (
            evaluate(models, text, out, *request.param),
            write(models, text, out / "w", *request.param),
        ):
            group += start(words, words)
            assert [member.end(800) for member in group[-2:]] == [0, 0], [m.said() for m in group]
    return out, [member.said() for member in group[:2]]


def test_the_rows_are_those_of_one_process(together, alone):
    two, one = (
        [row for row in report(out).rows if not row.metric.endswith(OF_THIS_RUN)]
        for out in (together[0], alone)
    )
    named = lambda rows: [(row.key, row.count) for row in rows]  # noqa: E731
    assert named(two) == named(one)
    assert {"perplexity", "needle", "ruler", "scale_best", "failed"} <= {row.metric for row in two}
    numbers = [[(row.value, row.low or 0, row.high or 0) for row in rows] for rows in (two, one)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)


def test_the_answers_are_those_of_one_process(together, alone):
    two, one = (json.loads((out / "w").read_text()) for out in (together[0], alone))
    assert two == one
    assert len({token for row in one for token in row}) > 5


def test_only_process_zero_writes_and_nothing_is_left_behind(together):
    out, (first, second) = together
    assert first.count("report: ") == 1
    assert "report: " not in second
    assert " INFO " not in second
    assert (out / "index.html").is_file()
    assert not (out / "parts").exists()
