"""A plan compiles the step that runs, and says what it needs."""

import dataclasses

import jax
import pytest

from hypenet_jax import runtime
from hypenet_jax.chips import CHIPS
from hypenet_jax.convert.inputs import read_weights
from hypenet_jax.convert.programs import build_stage, models_of
from hypenet_jax.halo.finetune import FinetuneConfig
from hypenet_jax.model.decoder import init_params
from hypenet_jax.plan import DoesNotFit, ServeConfig, here, nearest, plan, planning, report
from hypenet_jax.plan.changes import Change
from hypenet_jax.plan.planning import CompiledProgram, DevicePlan, too_big
from hypenet_jax.plan.programs import training_program
from hypenet_jax.sharding import MeshConfig, ShardingError, make_mesh
from hypenet_jax.train.state import create_state
from hypenet_jax.weights import save_hf

pytestmark = pytest.mark.brief


def places(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_arguments_are_those_that_a_run_calls_its_step_with(tiny, tmp_path, stage):
    run, mesh = tiny(stage), make_mesh(MeshConfig())
    if stage == "align":
        params = init_params(models_of(run).teacher, jax.random.key(0))
        save_hf(str(tmp_path / "teacher"), run.teacher, params, dtype="bfloat16")
        run = dataclasses.replace(run, teacher_folder=str(tmp_path / "teacher"))
    else:
        run = dataclasses.replace(run, method=FinetuneConfig(start_from=None))
    parts = build_stage(run, mesh)
    models = models_of(run)
    weights = read_weights(run, models, mesh)
    keys = runtime.keys(run.seed)
    params = run.method.initial_weights(models, weights, keys, parts.shardings)
    state = create_state(params, parts.stage.trainable, parts.optimizer, parts.shardings)
    planned_state, planned_frozen, _ = training_program(run, mesh).arguments
    assert places(planned_state) == places(state)
    assert places(planned_frozen) == places(weights.teacher)


@pytest.mark.parametrize(
    "stage", ["distill", *(pytest.param(s, marks=pytest.mark.slow) for s in ("align", "finetune"))]
)
def test_every_stage_compiles_with_its_state_donated(tiny, stage):
    made = plan(tiny(stage), here(8))
    arguments = jax.tree.leaves(made.program.arguments)
    whole = sum(leaf.dtype.itemsize * leaf.size for leaf in arguments)
    assert whole / 8 <= made.compiled.arguments < whole / 4
    assert made.compiled.outputs < 0.1 * made.compiled.arguments
    assert made.compiled.peak > made.compiled.arguments
    kinds = {one.kind for one in made.compiled.collectives}
    assert "all-gather" in kinds
    assert kinds & {"all-reduce", "reduce-scatter"}
    assert "limit               not known" in report(made)


def test_a_curriculum_is_planned_at_its_longest_rows_and_says_so(tiny):
    run, mesh = tiny("finetune"), make_mesh(MeshConfig())
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, curriculum=((768, 8),)))
    program = training_program(run, mesh)
    assert program.arguments[2].tokens.shape == (16, 16)
    assert program.calls == run.training.loop.steps - 3
    compiled = CompiledProgram(arguments=1, outputs=1, peak=1, collectives=(), seconds=0.0)
    said = report(DevicePlan(run, here(8), program, compiled, None))
    assert "planned: rows of 16 tokens, the longest of the curriculum; the 3 steps with" in said
    plain = dataclasses.replace(run, data=dataclasses.replace(run.data, curriculum=()))
    assert "curriculum" not in report(DevicePlan(plain, here(8), program, compiled, None))


@pytest.mark.parametrize("task", ["prefill", "decode"])
def test_serving_cuts_caches_by_heads(tiny, task):
    mesh = MeshConfig(fsdp=1, tensor=4)
    config = ServeConfig(model=tiny("align").teacher, task=task, context_length=4096, mesh=mesh)
    made = plan(config, here(4))
    cache = 2 * 2 * 4096 * 4 * 16 * 2
    assert cache / 4 < made.compiled.arguments < cache / 2
    assert made.compiled.outputs < 0.1 * cache / 4


def test_more_than_a_chip_may_take_does_not_fit(tiny, monkeypatch):
    small = dataclasses.replace(CHIPS["h100"], platform="cpu", memory=2.0**14)
    topology = dataclasses.replace(here(8), chip=small)
    monkeypatch.setattr(type(topology), "devices", lambda self: jax.devices())
    config = ServeConfig(model=tiny("align").teacher, task="decode", context_length=64, batch=8)
    with pytest.raises(DoesNotFit, match=r"may take 0\.00 GiB") as refused:
        plan(config, topology)
    assert refused.value.need > refused.value.limit == 2**14


def test_the_compilers_own_refusal_is_read():
    refused = too_big("RESOURCE_EXHAUSTED: ... Used 49.09G of 15.75G hbm. Exceeded hbm capacity")
    assert (refused.need / 2**30, refused.limit / 2**30) == (49.09, 15.75)
    refused = too_big("HLO temporaries (31.64G) exceeds available HBM (15.75G).")
    assert (refused.need / 2**30, refused.limit / 2**30) == (31.64, 15.75)
    assert too_big("INTERNAL: something else") is None


def test_the_nearest_change_is_the_first_that_fits_when_it_is_compiled(tiny, monkeypatch):
    run, tried = tiny("align"), []
    ladder = [Change(run, here(8), {"--training.loop.accumulate": str(n)}) for n in range(4)]
    outcomes = iter([DoesNotFit(2.0, 1.0), ShardingError("does not divide"), None])

    def attempt(config, topology):
        tried.append((config, topology))
        if (error := next(outcomes)) is not None:
            raise error

    monkeypatch.setattr(planning, "changes", lambda config, topology: iter(ladder))
    monkeypatch.setattr(planning, "plan", attempt)
    assert nearest(run, here(8)) is ladder[2]
    assert len(tried) == 3
