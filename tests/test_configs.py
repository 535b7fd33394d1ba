"""Every file in configs/ loads, has the published numbers, and its stages follow each other; and `load` itself."""

import dataclasses
import functools
import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from configs.mesh import SERVING, TRAINING
from hypenet_jax.config import HaloConfig, StageConfig, StudentConfig
from hypenet_jax.config_file import ConfigError, load, resolved
from hypenet_jax.convert.programs import student_config
from hypenet_jax.data.batch import packed_row, shares_past, stack_rows
from hypenet_jax.data.config import tokens_after
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.halo.method import abstract_params
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.model.decoder import Decoder
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if path.name not in ("__init__.py", "published.py", "recipes.py", "mesh.py")
    and "evals" not in path.relative_to(ROOT).parts
)
SERVED = [path for path in FILES if path.endswith(("decode_256k.py", "prefill_1m.py"))]
FILES = [path for path in FILES if path not in SERVED]
SIZES = ("halo_2b", "halo_5b", "halo_9b")
ALIGN = "configs/halo_2b/align.py"

pytestmark = pytest.mark.usefixtures("in_the_repository")


def kind(path):
    return HaloConfig if path.endswith(("halo.py", "quickstart.py")) else StageConfig


def stages(path):
    config = load(path, kind(path))
    return config.stages if isinstance(config, HaloConfig) else (config,)


def predicted_tokens(run):
    return run.training.loop.steps * run.data.sequences_per_step * run.data.context_length


def count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("path", FILES)
def test_every_config_loads_as_a_function_of_named_arguments(path):
    config = load(path, kind(path), ["--run-dir", "elsewhere"])
    runs = config.stages if isinstance(config, HaloConfig) else (config,)
    assert {config.run_dir, *(run.run_dir for run in runs)} == {"elsewhere"}


@pytest.mark.parametrize("path", FILES)
def test_a_resolved_config_is_json_and_reads_back_equal(path):
    plain = resolved(load(path, kind(path)))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["kind"] == kind(path).__name__


@pytest.mark.parametrize("path", FILES)
def test_the_wrong_launcher_is_told_which_one_is_right(path):
    other, right = (
        (StageConfig, "launch.halo") if kind(path) is HaloConfig else (HaloConfig, "launch.train")
    )
    with pytest.raises(ConfigError, match=f"use python -m {right}"):
        load(path, other)


@pytest.mark.parametrize("path", SERVED)
def test_a_long_context_is_planned_and_nothing_else(path):
    config = load(path, ServeConfig, ["--batch", "2"])
    assert config == dataclasses.replace(load(path, ServeConfig), batch=2)
    assert path.endswith(f"{config.task}_{'1m' if config.context_length == 2**20 else '256k'}.py")
    with pytest.raises(ConfigError, match=r"use python -m launch\.plan"):
        load(path, StageConfig)


def test_every_stage_is_planned_on_a_slice_and_on_a_node_and_so_is_serving():
    stages = {path for path in FILES if path.endswith(("align.py", "distill.py", "finetune.py"))}
    tpus = {one.config for one in TRAINING if one.topology.startswith("v")}
    gpus = {one.config for one in TRAINING if one.topology.startswith("h")}
    assert tpus == gpus == stages
    assert {one.config for one in SERVING} == set(SERVED)


@pytest.mark.parametrize("layout", TRAINING, ids=lambda one: f"{one.config}-{one.topology}")
def test_a_layout_leaves_the_rows_of_a_step_and_each_device_a_part_of_them(layout):
    run, plain = load(layout.config, StageConfig, layout.words), load(layout.config, StageConfig)
    assert run.data == plain.data
    data, fsdp, *_ = run.mesh.sizes(math.prod(map(int, re.findall(r"\d+", layout.topology)[1:])))
    rows = run.data.sequences_per_step
    assert rows % (run.training.loop.accumulate * data * fsdp) == 0


@pytest.mark.parametrize("path", [path for path in FILES if kind(path) is HaloConfig])
def test_each_stage_starts_where_the_text_of_its_parent_ended(path):
    config = load(path, HaloConfig)
    starts = 0
    for run in config.stages:
        parent = getattr(run.method, "start_from", None)
        if parent is None or isinstance(run.method, SelectConfig):
            continue
        before = config.stage(parent)
        assert config.stages.index(before) < config.stages.index(run)
        assert run.data.first_token == tokens_after(before.data, batches_read(before))
        assert run.data.corpus == before.data.corpus
        assert run.data.seed == before.data.seed
        starts += 1
    assert starts >= 2


def batches_read(run) -> int:
    """Those of training, and before them of closed-form fits."""
    fitted = getattr(run.method, "ridge_batches", 0) + getattr(run.method, "batches", 0)
    return fitted + (run.training.loop.steps if run.training else 0)


def test_stage_three_alone_reads_conversations_where_they_are_named():
    plain, chats = (
        load("configs/halo_2b/halo.py", HaloConfig, arguments)
        for arguments in ([], ["--conversations", "chats"])
    )
    *before, last = chats.stages
    assert tuple(before) == plain.stages[:-1]
    assert last.data.corpus.source.folder == "chats"
    assert last.data.corpus.block_length == last.data.context_length
    assert chats.evaluation.text == plain.evaluation.text


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_stage_three_join_short_documents_unless_all_are_joined_or_are_conversations(size):
    """Web documents, whose lengths are about log-normal with a mean of 1,000 tokens."""
    path = f"configs/{size}/finetune.py"
    data = load(path, StageConfig).data
    lengths = np.random.default_rng(0).lognormal(np.log(1000) - 0.5, 1.0, 1000).astype(int) + 1
    text = np.ones(lengths.sum(), np.int32)
    text[np.cumsum(lengths) - 1] = 0

    def past(join_below):
        row = functools.partial(packed_row, end_id=0, context_length=data.context_length)
        texts = np.split(text, range(data.context_length, len(text), data.context_length))
        rows = [row(t, reset_documents=True, join_below=join_below) for t in texts]
        return shares_past([stack_rows(rows)], data.context_length)[4096]

    assert past(0) < 0.1
    assert past(data.join_below) > 0.65
    upstream = load(path, StageConfig, ["--preset", "upstream_parity"]).data
    chats = load(path, StageConfig, ["--conversations", "chats"]).data
    assert (upstream.join_below, chats.join_below) == (0, 0)
    assert (upstream.reset_documents, chats.reset_documents) == (False, True)


@pytest.mark.parametrize("path", FILES)
def test_learning_rates_end_with_the_loop(path):
    for run in stages(path):
        if run.training is not None:
            assert run.training.optimizer.steps == run.training.loop.steps


@pytest.mark.parametrize("size", SIZES)
def test_published_stages_read_a_third_one_and_one_billion_tokens(size):
    billions = [predicted_tokens(run) / 1e9 for run in stages(f"configs/{size}/halo.py")]
    assert billions == pytest.approx([0.33, 0.98, 1.05], rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_conversion_is_its_stages_by_themselves(size):
    names = ("align", "distill", "finetune")
    assert stages(f"configs/{size}/halo.py") == tuple(
        stages(f"configs/{size}/{name}.py")[0] for name in names
    )


@pytest.mark.parametrize(
    ("size", "peak"), [("halo_2b", 1e-4), ("halo_5b", 5e-5), ("halo_9b", 3e-5)]
)
def test_published_learning_rates(size, peak):
    rates = [
        (run.training.optimizer.peak_lr, run.training.optimizer.final_lr)
        for run in stages(f"configs/{size}/halo.py")
    ]
    assert rates == [(1e-3, 1e-5), (peak, 1e-5), (1e-5, 1e-5)]


@pytest.mark.parametrize(
    ("size", "teacher_billions", "student_billions"),
    [("halo_2b", 1.7, 2), ("halo_5b", 4.0, 5), ("halo_9b", 8.2, 9)],
)
def test_full_size_models_have_the_published_sizes_and_split_over_eight_devices(
    size, teacher_billions, student_billions
):
    """Shapes only; nothing of them is in memory."""
    run = stages(f"configs/{size}/finetune.py")[0]
    mesh = make_mesh(run.mesh)
    models = (run.teacher, teacher_billions, 1), (student_config(run), student_billions, 0)
    for config, wanted, digits in models:
        params = abstract_params(Decoder(config))
        assert round(count(params.shapes) / 1e9, digits) == wanted
        local = jax.tree.map(
            lambda leaf, where: math.prod(where.shard_shape(leaf.shape)),
            params.shapes,
            params.shardings(mesh),
        )
        assert sum(jax.tree.leaves(local)) == pytest.approx(count(params.shapes) / 8, rel=0.001)


def test_overrides_are_typed():
    words = ["--training.loop.steps", "7", "--mesh.tensor", "2", "--training.dtype", "float32"]
    run = load(ALIGN, StageConfig, [*words, "--method.loss", "l2norm", "--data", "here"])
    assert run.training.loop.steps == 7
    assert run.mesh.tensor == 2
    assert (run.training.dtype, run.method.loss) == ("float32", "l2norm")
    assert run.data.corpus.source.folder == "here"
    plain = load(ALIGN, StageConfig, ["--data", "here"])
    changed = {"training": run.training, "mesh": run.mesh, "method": run.method}
    assert run == dataclasses.replace(plain, **changed)


def test_pairs_are_given_one_after_another():
    """Steps and weights of the loss, where a number alone is a weight too; patterns and rates."""
    words = ["--method.hidden-weight", "0", "1.0", "1000", "0.1", "--method.divergence-weight", "2"]
    words += ["--training.optimizer.rates", "lightning/mixer/*", "2", "embed/*", "0"]
    run = load("configs/halo_2b/distill.py", StageConfig, [*words, "--data", "here"])
    assert run.method.hidden_weight == ((0, 1.0), (1000, 0.1))
    assert run.method.divergence_weight == 2.0
    assert run.training.optimizer.rates == (("lightning/mixer/*", 2.0), ("embed/*", 0.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.loop.stps", "7"], "--training.loop.steps"),
        (["--teachr", "x"], "--teacher"),
        (["--training.loop.steps", "many"], "many"),
        (["--training.dtype", "float16"], "bfloat16"),
    ],
)
def test_an_unknown_or_ill_typed_argument_ends_with_code_two_and_what_would_work(
    capsys, words, said
):
    with pytest.raises(SystemExit) as end:
        load(ALIGN, StageConfig, words)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_an_argument_of_the_function_that_is_misspelt_is_named_too(capsys):
    with pytest.raises(SystemExit) as end:
        load("configs/quickstart.py", HaloConfig, ["--sed", "1"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "--seed" in printed.out + printed.err


def test_a_config_may_be_a_plain_value(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(
        f"from configs.halo_2b.align import config as make\nconfig = make(run_dir={str(tmp_path)!r})\n"
    )
    run = load(str(path), StageConfig, ["--seed", "3"])
    assert (run.run_dir, run.seed) == (str(tmp_path), 3)


@pytest.mark.parametrize("text", [None, "x = 1\n"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "nothing.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"no config file|defines no `config`"):
        load(str(path), StageConfig)


def test_a_student_needs_its_layers_or_who_selects_them():
    for fields in (
        {},
        {"softmax_layers": (1,), "selected_by": "select"},
        {"softmax_layers": (1,), "pattern": ("softmax",)},
        {"pattern": ()},
    ):
        with pytest.raises(
            ConfigError, match="give one of softmax_layers, pattern and selected_by"
        ):
            StudentConfig(**fields)


def test_every_stage_but_select_needs_a_training_section_and_a_teacher():
    run = load(ALIGN, StageConfig)
    with pytest.raises(ConfigError, match="training section"):
        dataclasses.replace(run, training=None)
    with pytest.raises(ConfigError, match="leave training out"):
        dataclasses.replace(run, method=SelectConfig(start_from="align", keep=1, rows=1))
    with pytest.raises(ConfigError, match="teacher_folder"):
        dataclasses.replace(run, teacher_folder=None)
    made = dataclasses.replace(run, method=FinetuneConfig(start_from=None), teacher_folder=None)
    assert made.teacher_folder is None


@pytest.mark.parametrize("size", ["2b", "5b", "9b"])
def test_every_way_to_select_layers_can_be_set_on_the_command_line(size):
    scores = f"configs/halo_{size}/scores.jsonl"
    budget = "--method.decode-tokens 131072 --method.decode-bytes 20000000000"
    for words, said in (
        ("--method.rule kl --method.measure --method.resamples 0", {"rule": "kl", "measure": ()}),
        (f"--method.scores {scores} --method.rule jet", {"scores": scores, "rule": "jet"}),
        (f"--method.keep None {budget}", {"keep": None, "decode_bytes": 20_000_000_000}),
        ("--method.rule explicit --method.keep None --method.layers 3 1", {"layers": (3, 1)}),
    ):
        method = load(f"configs/halo_{size}/select.py", StageConfig, words.split()).method
        assert {name: getattr(method, name) for name in said} == said


def test_two_stages_of_one_name_are_refused():
    config = load("configs/halo_2b/halo.py", HaloConfig)
    with pytest.raises(ConfigError, match="share a name"):
        HaloConfig(run_dir=config.run_dir, stages=(config.stages[0], config.stages[0]))


def test_stages_of_equal_fields_resolve_to_different_values():
    assert (
        resolved(DistillConfig(start_from="a"))["kind"]
        != resolved(FinetuneConfig(start_from="a"))["kind"]
    )


@pytest.mark.parametrize("path", [path for path in FILES if kind(path) is HaloConfig])
def test_the_evaluation_reads_what_the_stages_export_and_its_fields_can_be_set(path):
    config = load(path, HaloConfig, ["--evaluation.speed.rounds", "3"])
    folders = {stage.teacher_folder for stage in config.stages}
    folders |= {str(stage.hf_folder) for stage in config.stages if stage.export}
    assert config.evaluation.out == f"{config.run_dir}/report"
    assert {source.folder for source in config.evaluation.models} <= folders
    assert config.evaluation.measurements["speed"].rounds == 3
    for evaluator in config.evaluation.measurements.values():
        evaluator.selected(config.evaluation.models)


def test_the_quickstart_requires_its_quality_and_shows_its_speed():
    checks = load("configs/quickstart.py", HaloConfig).evaluation.checks
    assert len(checks) == 13
    shown = [check.metric for check in checks if not check.required]
    assert shown == ["prefill_speedup", "decode_speedup"]
