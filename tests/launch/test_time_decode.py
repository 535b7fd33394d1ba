"""python -m launch.time_decode: published shapes by name, without a checkpoint."""

import jax
import pytest

from hypenet_jax.evals.report import report_from_json_lines
from hypenet_jax.model import presets
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.mixers import SoftmaxSpec
from launch import time_decode

pytestmark = pytest.mark.brief

TEACHER = ModelConfig(
    vocab_size=64,
    d_model=16,
    d_mlp=16,
    mixers=(SoftmaxSpec(2, 1, 8, 1e4),),
    tie_embeddings=True,
)


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> time_decode.Arguments:
    monkeypatch.setattr(presets, "qwen3_1p7b", lambda: TEACHER)
    monkeypatch.setattr(presets, "hypenet_2b", lambda: hypenet(TEACHER, ()))
    return time_decode.Arguments(
        models=("qwen3_1p7b", "hypenet_2b"),
        lengths=(40, 48),
        steps=32,
        rounds=1,
        chip="h200",
        out=tmp_path / "rows.jsonl",
    )


def test_every_length_gets_times_their_ratio_and_how_far_the_roofline_is(arguments, capsys):
    time_decode.main(arguments)
    report = report_from_json_lines(arguments.out.read_text())
    assert report.lengths == arguments.lengths
    assert "decode_speedup" in capsys.readouterr().out
    for length in arguments.lengths:
        ours, theirs = (
            report.value("decode_seconds", name, length) for name in reversed(arguments.models)
        )
        assert report.value("decode_speedup", "hypenet_2b", length) == pytest.approx(theirs / ours)
        least = report.value("decode_seconds_roofline", "hypenet_2b", length)
        assert report.value("decode_relative_to_roofline", "hypenet_2b", length) == ours / least > 1


def test_a_length_that_does_not_fit_is_a_row_and_the_others_are_timed(arguments, monkeypatch):
    times = time_decode.decode_times

    def full_at_48(models, length, **options):
        if length == 48:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes")
        return times(models, length, **options)

    monkeypatch.setattr(time_decode, "decode_times", full_at_48)
    time_decode.main(arguments)
    report = report_from_json_lines(arguments.out.read_text())
    assert {row.label for row in report.select("failed", length=48).rows} == {
        "RESOURCE_EXHAUSTED: Out of memory: 9 bytes"
    }
    assert report.select("decode_seconds").lengths == (40,)
