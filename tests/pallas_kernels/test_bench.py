"""The benchmark command: what it times, what it writes, and what it says where fla cannot run."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pallas_kernels import dispatch
from pallas_kernels.bench import __main__ as command
from pallas_kernels.bench import cases, lightning, measure
from pallas_kernels.bench.cases import OPS, Choice
from pallas_kernels.bench.op import Case

pytestmark = pytest.mark.brief

TINY = {
    "B T N H": ((2, 40, 2, 8), (1, 24, 2, 8)),
    "B T S N K H": ((1, 16, 16, 2, 1, 8),),
    "B S N K H": ((1, 24, 2, 1, 8),),
    "B L D F": ((1, 2, 128, 384),),
    "T D V": ((16, 8, 80),),
    "T D V k": ((16, 8, 80, 5),),
}


@pytest.fixture(autouse=True)
def tiny_shapes(monkeypatch):
    tiny = []
    for op in OPS:
        shapes = TINY[op.axes][: len(op.cpu_shapes)]
        bar = op.cpu_bar and (shapes[-1], op.cpu_bar[1])
        tiny.append(dataclasses.replace(op, cpu_shapes=shapes, cpu_bar=bar))
    monkeypatch.setattr(cases, "OPS", tuple(tiny))
    machine = measure.Machine(1e9, {"float32": 1e10, "bfloat16": 1e10})
    monkeypatch.setattr(command, "measure_machine", lambda rounds: machine)


def rows_of(tmp_path, *arguments):
    path = tmp_path / "rows.json"
    command.main([*arguments, "--rounds", "3", "--json", str(path)])
    return json.loads(path.read_text())


def test_every_op_is_timed_and_is_as_accurate_as_float32(tmp_path, caplog, monkeypatch):
    timed = {"norm_rotary": "permuted", "projection": "reference"}
    small = [
        dataclasses.replace(
            op, cpu_shapes=op.cpu_shapes[:1], implementations=(timed.get(op.name, "chunked"),)
        )
        for op in cases.OPS
    ]
    monkeypatch.setattr(cases, "OPS", small)
    with caplog.at_level("INFO", logger="pallas_kernels.bench"):
        content = rows_of(tmp_path)
    rows = content["rows"]
    assert {row["op"] for row in rows} == {op.name for op in OPS}
    for row in rows:
        assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
        assert row["ratio"] == 1
        assert row["over_roofline"] > 0
        assert all(0 <= error < 5e-6 for error in row["errors"].values()), row
    outputs = {r["mode"]: list(r["errors"]) for r in rows if r["op"] == "lightning_attention"}
    assert outputs == {
        "forward": ["o"],
        "forward+state": ["o", "state"],
        "forward+gradient": ["o", "dq", "dk", "dv"],
        "state+gradient": ["o", "state", "dq", "dk", "dv", "dstate"],
    }
    assert {"device", "date", "versions", "machine", "rows"} == set(content)
    assert content["versions"]["jax"] == jax.__version__
    text = caplog.records[-1].getMessage().splitlines()
    assert len(text) == 2 + len(rows)
    assert text[1].split()[:3] == ["op", "shape", "dtype"]


def test_an_implementation_of_another_device_is_left_out_and_named(caplog):
    op = lightning.WHOLE_ROWS
    case = Case(op, (1, 24, 2, 8), "float32", ("chunked", "gpu"), op.modes[:1])
    machine = measure.Machine(1e9, {"float32": 1e10})
    with caplog.at_level("INFO", logger="pallas_kernels.bench"):
        (rows,) = measure.measure(case, machine, 3)
    assert [row.implementation for row in rows] == ["chunked"]
    assert "left out: lightning_attention implementation 'gpu' needs a GPU" in caplog.text


def test_ratios_are_to_the_first_implementation_and_to_the_roofline(tmp_path):
    rows = rows_of(tmp_path, "lightning_attention", "--cpu-bars")["rows"]
    assert [row["implementation"] for row in rows] == ["chunked", "recurrent", "associative"]
    for row in rows:
        assert math.isclose(row["ratio"], row["milliseconds"] / rows[0]["milliseconds"])
    moved = 4 * (24 * 2 * 8) * 11 * 1e-9  # q, k, v twice and do; o, dq, dk, dv, all float32
    multiplied = (24 * 2 * 8) * (14 * 64 + 12 * 8) / 1e10
    roofline = 1e3 * max(moved, multiplied)
    assert rows[0]["over_roofline"] == pytest.approx(rows[0]["milliseconds"] / roofline)


def test_the_cases_of_an_accelerator_are_those_of_the_2b_model(monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    there = lightning.PART_OF_A_ROW.cases()
    assert [case.dtype for case in there] == ["bfloat16", "float32"]
    assert there[0].label == "B1 T16384 N16 H128"
    assert "recurrent" not in there[0].implementations
    assert {"gpu", "chunked"} <= set(there[0].implementations)
    q, k, *_ = dataclasses.replace(there[1], shape=(1, 64, 16, 128)).inputs(1).arrays
    for x in (q, k):
        np.testing.assert_allclose(jnp.mean(x**2, axis=-1), 1, rtol=1e-4)


def test_rounds_are_interleaved_and_fewer_of_slow_ones_unless_asked_for(monkeypatch):
    seen = []

    def sampler(name):
        def sample():
            seen.append(name)
            return 1.0

        return sample

    times = measure.interleaved({"a": sampler("a"), "b": sampler("b")}, 5)
    assert seen == ["a", "b"] * 5
    assert times == {"a": [1.0] * 5, "b": [1.0] * 5}
    monkeypatch.setattr(measure, "PATIENCE", -1.0)
    assert len(measure.interleaved({"a": sampler("a")}, None)["a"]) == measure.LEAST_ROUNDS
    assert len(measure.interleaved({"a": sampler("a")}, 5)["a"]) == 5


def test_the_definition_of_lightning_attention_is_its_recurrence():
    rng = np.random.default_rng(0)
    given, cotangents = rng.standard_normal((4, 1, 30, 2, 4)), rng.standard_normal((2, 1, 2, 4, 4))
    (q, k, v, d_out), (state, d_state) = given, cotangents
    log_decay = lightning._slopes(2).astype(np.float64)
    (mode,) = lightning.PART_OF_A_ROW.modes
    with jax.enable_x64(True):
        results = mode.runner(lightning._definition)((q, k, v, state), (d_out, d_state))

        def loss(q, k, v, state):
            got, last = oracles.lightning(q, k, v, state, log_decay, None, 0.5)
            return jnp.sum(got * d_out) + jnp.sum(last * d_state)

        wanted = jax.grad(loss, (0, 1, 2, 3))(*map(jnp.asarray, (q, k, v, state)))
    outputs = oracles.recurrence(q, k, v, state, log_decay, None, 0.5)
    oracles.assert_close(tuple(results), (*outputs, *wanted), 1e-12)


def test_where_pytorch_is_missing_fla_ends_the_command_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        command.main(["lightning_attention", "--against", "fla", "--implementations", "chunked"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "fla cannot run here: ImportError: No module named 'torch'\n"


def test_fla_is_no_implementation_of_another_op(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["linear_kl", "--against", "fla"])
    assert end.value.code == 2
    assert "--against fla times lightning_attention, not linear_kl" in capsys.readouterr().err


def test_a_cpu_bar_sets_the_chunked_loss_against_its_definition(tmp_path, capsys):
    rows = rows_of(tmp_path, "linear_kl", "--cpu-bars")["rows"]
    assert [row["implementation"] for row in rows] == ["chunked", "reference"]
    assert {row["mode"] for row in rows} == {"forward+gradient"}
    with pytest.raises(SystemExit):
        command.main(["attention", "--cpu-bars"])
    answer, known = capsys.readouterr().err.split("; there are ")
    assert answer == "no op is 'attention'"
    assert {"lightning_attention", "linear_cross_entropy", "linear_kl"} <= set(
        known.strip().split(", ")
    )


def test_names_cut_the_cases_down_and_keep_their_order(monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    kept = Choice(
        op="lightning_attention",
        shape="T16384 N16",
        dtypes=("bfloat16",),
        modes=("forward+gradient", "forward"),
        implementations=("gpu_one_pass", "chunked"),
    ).cases()
    assert [case.label for case in kept] == ["B1 T16384 N16 H128", "B2 T16384 N16 H128"]
    for case in kept:
        assert case.dtype == "bfloat16"
        assert [mode.name for mode in case.modes] == ["forward", "forward+gradient"]
        assert case.implementations == ("chunked", "gpu_one_pass")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("--shape T9", "no shape has 'T9'; there are B2 T40 N2 H8, B1 T24 N2 H8"),
        ("--dtypes int8", "no dtype is 'int8'; there are float32"),
        (
            "--modes gradient",
            "no mode is 'gradient'; there are forward, forward+state, forward+gradient, state+gradient",
        ),
        (
            "--implementations fla",
            "no implementation is 'fla'; there are recurrent, associative, chunked, gpu, tpu, ",
        ),
        ("--shape T24 --modes state+gradient", "no mode is 'state+gradient'; there are forward, "),
    ],
)
def test_what_no_case_has_is_refused_with_what_there_is(asked, answer, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["lightning_attention", *asked.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(answer)


def test_looking_at_cases_computes_nothing(monkeypatch):
    def refuse(*_):
        raise AssertionError("inputs were made")

    monkeypatch.setattr(jax.random, "normal", refuse)
    assert {case.op.name for case in Choice().cases()} == {op.name for op in OPS}


def test_one_pass_is_the_gpu_kernels_with_rounded_intermediates():
    op, mode = lightning.WHOLE_ROWS, lightning.WHOLE_ROWS.modes[0]
    case = Case(op, (1, 40, 2, 16), "bfloat16", ("gpu", lightning.ONE_PASS), op.modes)
    with dispatch.interpreted():
        errors = [
            measure.errors_of(
                case, mode, op.call(*measure.small_inputs(case).arrays, implementation=name)[:1]
            )["o"]
            for name in case.implementations
        ]
    assert errors[0] < errors[1] < 1e-2
