"""What is tried where a run does not fit: the nearest first, the update of a step always the same."""

import dataclasses

import pytest

from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import load
from hypenet_jax.model.presets import hypenet_2b
from hypenet_jax.plan.changes import changes
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.topology import parse
from hypenet_jax.sharding import MeshConfig

ALIGN = "configs/halo_2b/align.py"


@pytest.fixture
def align(in_the_repository):
    return load(ALIGN, StageConfig)


def without_topology(words):
    place = words.index("--topology") if "--topology" in words else len(words)
    return words[:place] + words[place + 2 :]


def test_remat_comes_first_then_micro_batches_then_devices(align):
    tried = [dict(change.flags) for change in changes(align, parse("v5e:2x4"))]
    remat = {"--training.remat": "full"}
    assert tried[:3] == [
        remat,
        {**remat, "--training.loop.accumulate": "2"},
        {**remat, "--training.loop.accumulate": "4"},
    ]
    assert [flags.get("--topology") for flags in tried[3:]] == ["v5e:4x4", "v5e:4x8"]


def test_copies_of_the_model_become_shards_before_there_are_more_devices(align):
    copies = dataclasses.replace(align, mesh=MeshConfig(data=4))
    tried = [change.flags for change in changes(copies, parse("h100:8"))]
    (cut, *more) = [flags for flags in tried if "--mesh.data" in flags]
    assert (cut["--mesh.data"], cut["--mesh.fsdp"]) == ("1", "8")
    assert "--topology" not in cut
    assert [flags["--topology"] for flags in more] == ["h100:2x8", "h100:4x8"]


def test_typing_the_words_gives_the_changed_run_and_its_batch_divides(align):
    tried = list(changes(align, parse("v5e:2x4")))
    for change in tried:
        assert load(ALIGN, StageConfig, without_topology(change.words)) == change.config
        data, fsdp, *_ = change.config.mesh.sizes(change.topology.count)
        micro = change.config.data.sequences_per_step / change.config.training.loop.accumulate
        assert micro % (data * fsdp) == 0
        assert change.config.data == align.data
    assert tried


def test_serving_takes_more_devices_that_share_the_heads():
    serve = ServeConfig(model=hypenet_2b(), task="decode", context_length=2**18)
    tried = [change.flags for change in changes(serve, parse("v5e:1x1"))]
    assert tried == [{"--topology": "v5e:2x2", "--mesh.tensor": "4"}]
