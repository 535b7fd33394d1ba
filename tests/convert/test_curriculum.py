"""Stage 2 follows stage 2 with rows that become longer, cut where they do; and what cannot work is refused."""

import dataclasses

import pytest
from tiny_chain import LENGTH, LONG, ROWS, chain

from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import ConfigError, load
from hypenet_jax.convert import run_stage
from hypenet_jax.convert.programs import build_stage
from hypenet_jax.data.config import tokens_after
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.sharding import MeshConfig, ShardingError, make_mesh
from hypenet_jax.train.errors import CheckpointError, Preempted
from hypenet_jax.train.metrics import read_metrics
from hypenet_jax.train.stage_output import read_stage_output

pytestmark = pytest.mark.brief


def once_more(distill: StageConfig) -> StageConfig:
    """Distillation of what this one left: a step with rows of 16 tokens, then two with rows of 32."""
    data = dataclasses.replace(
        distill.data,
        context_length=LONG,
        first_token=tokens_after(distill.data, 2),
        curriculum=((ROWS * LONG, LENGTH),),
    )
    loop = dataclasses.replace(distill.training.loop, steps=3)
    return dataclasses.replace(
        distill,
        name="distill_long",
        method=DistillConfig(start_from="distill", from_student=True),
        data=data,
        training=dataclasses.replace(distill.training, loop=loop),
    )


def with_data(stage: StageConfig, **changes) -> StageConfig:
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, **changes))


@pytest.mark.slow  # its parts have fast tests: tests/train/test_longer_rows.py, tests/data/test_phases.py
def test_a_second_distillation_starts_from_the_first_and_goes_on_where_its_rows_become_longer(
    copy, caplog
):
    stage = once_more(copy.stage("distill"))
    with pytest.raises(Preempted, match="stopped after step 1 of 3"):
        run_stage(stage, stop=lambda step: step == 1)
    with pytest.raises(CheckpointError, match=r"other settings.*data\.curriculum"):
        run_stage(with_data(stage, curriculum=((2 * ROWS * LONG, LENGTH),)))
    with caplog.at_level("INFO", "hypenet_jax"):
        run_stage(stage)
    for said in ("from step 1 on, 16 rows of 16 tokens", "from step 2 on, 8 rows of 32 tokens"):
        assert f"distill_long: {said}" in caplog.text
    assert "distill_long: going on from step 1, fingerprint holds" in caplog.text
    first, second = (
        read_stage_output(stage.final_of(name), name) for name in ("distill", stage.name)
    )
    assert second["parent"] == first["fingerprint"] != second["fingerprint"]
    tokens = [record["tokens"] for record in read_metrics(stage.folder / "metrics.jsonl")]
    assert all(0.8 * ROWS * LONG < count <= ROWS * LONG for count in tokens)
    assert len(tokens) == 3


def test_a_curriculum_is_typed_on_the_command_line(in_the_repository):
    words = ["--data.curriculum", "20971520", "512", "104857600", "4096"]
    stage = load("configs/halo_2b/finetune.py", StageConfig, words)
    rows = [
        (p.first_batch, p.data.sequences_per_step, p.data.context_length) for p in stage.data.phases
    ]
    assert rows == [(0, 4096, 512), (10, 512, 4096), (60, 128, 16_384)]


def test_what_would_end_a_stage_in_the_middle_or_do_nothing_is_refused_at_the_start(tmp_path):
    stage = once_more(chain(tmp_path, tmp_path).stage("distill"))
    with pytest.raises(ConfigError, match="takes 3 of 3 steps and leaves none for rows of 32"):
        with_data(stage, curriculum=((3 * ROWS * LONG, LENGTH),))
    select = chain(tmp_path, tmp_path).stage("select")
    with pytest.raises(ConfigError, match=r"select: trains nothing: leave data\.curriculum out"):
        dataclasses.replace(select, data=stage.data)
    stage = dataclasses.replace(
        stage, student=dataclasses.replace(stage.student, softmax_layers=(1,), selected_by=None)
    )
    in_parts = dataclasses.replace(stage.training.loop, accumulate=3)
    in_parts = dataclasses.replace(stage.training, loop=in_parts)
    with pytest.raises(ConfigError, match="16 rows of 16 tokens in 3 micro-batches do not split"):
        build_stage(dataclasses.replace(stage, training=in_parts), make_mesh(MeshConfig()))
    few = with_data(stage, sequences_per_step=4, curriculum=((ROWS * LONG // 2, LENGTH),))
    with pytest.raises(ShardingError, match="4 rows of 32 tokens in 1 micro-batches"):
        build_stage(few, make_mesh(MeshConfig()))
