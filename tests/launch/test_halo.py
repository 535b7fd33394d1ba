"""python -m launch.halo: help, which stages it runs, and exit codes."""

import logging
import pathlib

import pytest

from hypenet_jax.train.errors import CheckpointError, NumericsError, Preempted
from launch import halo

pytestmark = pytest.mark.brief

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "halo_2b" / "halo.py")


@pytest.fixture(autouse=True)
def as_from_the_repository(monkeypatch, tmp_path):
    """`configs` can be imported, runs lie in a folder of the test, and logging is as it was afterwards."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("hypenet_jax")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def convert(monkeypatch):
    """What `convert` was asked; what it answers is `convert.answer`, raised if it is an error."""

    class Convert:
        answer: object = True
        asked: dict

        def __call__(self, config, **options):
            self.asked = {"config": config, **options}
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    made = Convert()
    monkeypatch.setattr(halo, "convert", made)
    return made


def call(*words):
    try:
        return halo.main(list(words))
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2), (["--only", "align"], 2)])
def test_help_prints_the_usage_and_so_does_a_call_without_config(capsys, words, code):
    assert call(*words) == code
    assert "python -m launch.halo CONFIG" in capsys.readouterr().out


def test_help_of_a_config_lists_its_arguments(capsys):
    assert call(CONFIG, "--help") == 0
    assert "--teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "only", "start"),
    [
        ([], None, None),
        (["--only", "distill"], "distill", None),
        (["--from=distill"], None, "distill"),
    ],
)
def test_stages_may_be_chosen_and_the_rest_goes_to_the_config(convert, words, only, start):
    assert call(CONFIG, *words, "--run-dir", "elsewhere") == 0
    assert (convert.asked["only"], convert.asked["start"]) == (only, start)
    assert convert.asked["config"].run_dir == "elsewhere"
    assert convert.asked["stop"](1) is False


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (True, 0),
        (False, 6),
        (NumericsError("not finite"), 4),
        (CheckpointError("torn"), 5),
        (OSError("no disk"), 5),
        (ValueError("odd"), 2),
        (Preempted("saved"), 42),
    ],
)
def test_each_way_to_end_has_its_exit_code(convert, capsys, answer, code):
    convert.answer = answer
    assert call(CONFIG) == code
    printed = capsys.readouterr().err
    if isinstance(answer, Exception):
        assert printed.strip() == f"{type(answer).__name__}: {answer}"


def test_a_bug_is_code_one_with_its_traceback(convert, capsys):
    convert.answer = KeyError("oops")
    assert call(CONFIG) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "no config file nowhere.py"),
        ([CONFIG, "--only", "aligm"], "no stage 'aligm'; the stages are ['align', 'distill', "),
        ([CONFIG, "--from", "aligm"], "no stage 'aligm'"),
        ([str(ROOT / "configs" / "halo_2b" / "align.py")], "use python -m launch.train"),
    ],
)
def test_a_bad_config_or_stage_is_one_line_and_code_two(capsys, words, said):
    assert call(*words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.strip().splitlines()) == 1
