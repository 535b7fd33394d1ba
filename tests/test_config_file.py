"""One parser knows a command's own options, the arguments of a config file, and every field of its config."""

import pytest

from hypenet_jax import runtime
from hypenet_jax.config import HaloConfig, StageConfig
from hypenet_jax.config_file import ConfigError, load, parse
from launch.halo import Options

ALIGN, CHAIN, QUICK = "configs/halo_2b/align.py", "configs/halo_2b/halo.py", "configs/quickstart.py"

pytestmark = pytest.mark.usefixtures("in_the_repository")


def test_options_of_the_command_and_of_the_cluster_may_stand_anywhere():
    cluster = ["--process-id", "1", "--num-processes=2", "--coordinator", "host:1"]
    words = ["--only", "align", CHAIN, *cluster, "--teacher", "T", "--align.seed", "7"]
    config, options, found = parse(words, HaloConfig, Options, runtime.Cluster)
    assert (options.only, options.start) == ("align", None)
    assert found == runtime.Cluster(coordinator="host:1", num_processes=2, process_id=1)
    assert config.stage("align").teacher_folder == "T"
    assert [stage.seed for stage in config.stages] == [7, 0, 0]


def test_fields_follow_the_name_of_their_stage_and_others_stay():
    words = ["--distill.training.optimizer.peak-lr", "3e-4", "--teacher-short.method.start.std=0.5"]
    plain, config = load(QUICK, HaloConfig), load(QUICK, HaloConfig, words)
    assert config.stage("distill").training.optimizer.peak_lr == 3e-4
    assert config.stage("teacher_short").method.start.std == 0.5
    changed = {"distill", "teacher_short"}
    for before, after in zip(plain.stages, config.stages, strict=True):
        assert (before == after) == (after.name not in changed)


def test_an_argument_and_a_section_may_share_a_name_and_a_field_yields_to_the_argument():
    words = ["--data", "here", "--data.context-length", "64", "--run-dir", "there"]
    config = load(ALIGN, StageConfig, words)
    assert (config.data.corpus.source.folder, config.data.context_length) == ("here", 64)
    assert config.run_dir == "there"


def test_stages_of_one_chain_share_their_run_directory():
    with pytest.raises(ConfigError, match=r"'elsewhere'.*not in runs/halo_2b"):
        load(CHAIN, HaloConfig, ["--align.run-dir", "elsewhere"])


def test_help_lists_everything_that_can_be_set(capsys):
    with pytest.raises(SystemExit) as end:
        parse([CHAIN, "--help"], HaloConfig, Options, runtime.Cluster, usage="Converts.")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for said in ("Converts.", "--from", "--heartbeat-seconds", "--preset"):
        assert said in printed
    for said in ("--align.method.loss", "--distill.training.optimizer.peak-lr", "--finetune.seed"):
        assert said in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--distil.training.loop.steps", "7"], "--distill.training.loop.steps"),
        (["--cordinator", "x"], "--coordinator"),
        (["--onyl", "align"], "--only"),
        (["--prset", "recommended"], "--preset"),
        (["--process-id", "first"], "first"),
    ],
)
def test_what_is_misspelt_anywhere_ends_with_code_two_and_the_nearest_names(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        parse([CHAIN, *words], HaloConfig, Options, runtime.Cluster)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--training.short-halo", "--training.neighbor-exchange"),
        ("--training.short_halo=True", "--training.neighbor-exchange"),
        ("--distill.training.short-halo", "--distill.training.neighbor-exchange"),
        ("--stage.loss", "--method.loss"),
        ("--upstream-parity", "--preset"),
    ],
)
def test_an_old_name_fails_naming_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"has a new name: {new}$"):
        load(ALIGN, StageConfig, [old])


FOLDER = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Found:
    command = "launch.find"
    folder: str
    depth: int = 1

def config(model: str, depth: int = 2) -> Found:
    return Found(model, depth)
"""


@pytest.fixture
def of_a_folder(tmp_path):
    (tmp_path / "find.py").write_text(FOLDER)
    return str(tmp_path / "find.py"), "--model"


def test_a_folder_may_stand_for_a_config_file(tmp_path, of_a_folder):
    (config,) = parse([str(tmp_path), "--depth", "3"], object, of_a_folder=of_a_folder)
    assert (config.folder, config.depth) == (str(tmp_path), 3)
    with pytest.raises(ConfigError, match=r"nowhere is neither a folder nor a file"):
        parse(["nowhere"], object, of_a_folder=of_a_folder)


def test_help_needs_no_argument_that_the_function_needs(capsys, of_a_folder):
    with pytest.raises(SystemExit) as end:
        parse([of_a_folder[0], "--help"], object)
    assert end.value.code == 0
    assert "--model" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        parse([of_a_folder[0]], object)
    assert end.value.code == 2
    assert "--model" in capsys.readouterr().err
