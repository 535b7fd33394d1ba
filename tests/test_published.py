"""Plans and presets of the published configs, by the command line."""

import itertools

import pytest

from hypenet_jax.config import HaloConfig, StageConfig
from hypenet_jax.config_file import ConfigError, load
from hypenet_jax.convert.programs import student_config
from hypenet_jax.data.config import tokens_after
from hypenet_jax.model.config import MixerOptions

SIZES = ("halo_2b", "halo_5b", "halo_9b")

pytestmark = pytest.mark.usefixtures("in_the_repository")

PLAN = (
    *("--recurrent.rope", "False", "--recurrent.expand-kv", "False"),
    *("--student.softmax.output-gate", "False", "--student.tie-embeddings", "True"),
    *("--student.softmax-layers", "1", "2"),
)


@pytest.mark.parametrize("size", SIZES)
def test_one_option_sets_the_plan_of_every_stage(size):
    config = load(f"configs/{size}/halo.py", HaloConfig, PLAN)
    assert {stage.recurrent for stage in config.stages} == {
        MixerOptions(rope=False, expand_kv=False)
    }
    distilled, finetuned = (student_config(config.stage(n)) for n in ("distill", "finetune"))
    assert distilled == finetuned
    assert distilled.tie_embeddings
    assert distilled.softmax_layers == (1, 2)
    assert [distilled.mixers[i].output_gate for i in (0, 1)] == [True, False]
    assert distilled.mixers[0].rope_theta is None
    assert distilled.mixers[0].num_kv_heads == 8
    assert load(f"configs/{size}/distill.py", StageConfig, PLAN) == config.stage("distill")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--distill.recurrent.rope", "False"], "distill starts from align, whose plan differs"),
        (["--finetune.student.softmax.rope", "True"], "finetune starts from distill, whose plan"),
    ],
)
def test_a_stage_of_another_plan_than_its_parent_is_refused_at_the_start(words, said):
    with pytest.raises(ConfigError, match=said):
        load("configs/halo_2b/halo.py", HaloConfig, words)


@pytest.mark.parametrize(
    ("size", "weights"), [("halo_2b", "bfloat16"), ("halo_5b", "bfloat16"), ("halo_9b", "float32")]
)
def test_upstream_parity_runs_every_stage_as_the_official_code_does(size, weights):
    words = ["--preset", "upstream_parity"]
    config = load(f"configs/{size}/halo.py", HaloConfig, words)
    for stage in config.stages:
        assert (stage.data.reset_documents, stage.data.first_token) == (False, 0)
        assert stage.training.optimizer.first_update_at_zero
        assert stage.training.optimizer.weights == weights
        assert stage.training.rounded_tables == (stage.name != "finetune")
    assert config.stage("distill").method.gates == "official"
    assert student_config(config.stage("finetune")).tie_embeddings
    kept = load(f"configs/{size}/halo.py", HaloConfig, [*words, "--student.tie-embeddings=False"])
    assert not student_config(kept.stage("distill")).tie_embeddings


@pytest.mark.parametrize("size", SIZES)
def test_the_recommended_chain_starts_in_closed_form_and_reads_a_fifth(size):
    published = load(f"configs/{size}/halo.py", HaloConfig)
    config = load(f"configs/{size}/halo.py", HaloConfig, ["--preset", "recommended"])
    names = ["align", "refit", "distill", "finetune"]
    assert [stage.name for stage in config.stages] == names
    assert config.stage("align").method.ridge_batches > 0
    assert config.stage("refit").method.batches > 0
    for name in ("align", "distill"):
        ours, theirs = (each.stage(name).training.loop.steps for each in (config, published))
        assert 5 * ours == theirs
    for before, stage in itertools.pairwise(config.stages):
        assert stage.method.start_from == before.name
        fitted = getattr(before.method, "ridge_batches", 0) + getattr(before.method, "batches", 0)
        read = fitted + (before.training.loop.steps if before.training else 0)
        assert stage.data.first_token == tokens_after(before.data, read)


def test_a_published_chain_selects_its_layers_where_it_is_asked_to():
    words = ["--student.softmax-layers", "None", "--student.selected-by", "select"]
    config = load("configs/halo_2b/halo.py", HaloConfig, words)
    assert [stage.name for stage in config.stages] == ["align", "select", "distill", "finetune"]
    assert config.stage("finetune").student.selected_by == "select"


def test_a_pattern_repeats_over_the_layers():
    words = ["--student.softmax-layers", "None", "--student.pattern"]
    three = ["lightning"] * 3
    run = load("configs/halo_2b/distill.py", StageConfig, [*words, *three, "softmax"])
    assert student_config(run).softmax_layers == (3, 7, 11, 15, 19, 23, 27)
    with pytest.raises(
        ConfigError, match=r"the pattern names \['average'\]; layers are softmax or"
    ):
        load("configs/halo_2b/distill.py", StageConfig, [*words, "average", "softmax"])
