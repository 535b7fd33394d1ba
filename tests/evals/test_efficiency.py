import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.chips import CHIPS
from hypenet_jax.evals.efficiency.roofline import roofline_rows
from hypenet_jax.evals.efficiency.speed import (
    cursor_at,
    decode_times,
    efficiency,
    random_layers,
)
from hypenet_jax.model.cost import decode_work, prefill_work, state_bytes
from hypenet_jax.model.decoder import DecodeState, decode_state
from hypenet_jax.model.presets import hypenet_2b, qwen3_1p7b

pytestmark = pytest.mark.brief


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("capacity", [16, 100])
def test_state_bytes_by_formula_are_those_of_the_arrays(teacher, student, capacity, dtype):
    for eval_model in (teacher, student):
        config = eval_model.decoder.config
        state = decode_state(config, 1, capacity, dtype)
        measured = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert state_bytes(config, capacity, dtype) == measured


def test_every_model_is_timed_at_every_length_and_compared_with_the_first(teacher, student):
    models = [teacher, student]
    report = efficiency(models, 64, 2) + efficiency(models, 96, 2, prefill=False)
    for metric, lengths in (("prefill", (64,)), ("decode", (64, 96))):
        assert report.select(f"{metric}_seconds", "teacher").lengths == lengths
        assert report.select(f"{metric}_speedup").models == ("student",)
    row = report.select("prefill_seconds", "student").rows[0]
    assert row.low <= row.value <= row.high
    assert row.count == 2
    for model, eval_model in (("teacher", teacher), ("student", student)):
        state = report.value("state_bytes", model, 96)
        assert state == report.value("state_bytes_formula", model, 96)
        held = state + sum(leaf.nbytes for leaf in jax.tree.leaves(eval_model.params))
        for metric, tokens in (("prefill", 96), ("decode", 1)):
            activations = 4 * tokens * eval_model.decoder.config.d_mlp
            peak = report.value(f"{metric}_peak_bytes", model, 96)
            assert held + activations < peak < held + 2**22


def test_a_filled_state_goes_on_where_a_read_context_would(student):
    single = student.with_single_layers()
    tokens = jnp.ones((1, 12), jnp.int32)
    state = decode_state(single.decoder.config, 1, 16, jnp.float32)
    read = jax.jit(
        lambda state: single.decoder.apply({"params": single.params}, tokens, state=state)
    )
    read = read(state).state
    filled = DecodeState(random_layers(single.decoder, 16), cursor_at(16, 12))
    assert jax.tree.structure(filled) == jax.tree.structure(read)
    for mine, theirs in zip(
        *map(jax.tree.leaves, (filled.cache_position, read.cache_position)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_single_layers_are_the_same_model(student, log_probs):
    tokens = np.arange(40, dtype=np.int32)[None]
    expected = log_probs(student, tokens)
    np.testing.assert_allclose(log_probs(student.with_single_layers(), tokens), expected, atol=1e-5)


def test_a_length_without_room_for_the_steps_is_refused(student):
    with pytest.raises(ValueError, match="leaves no context before 32 steps"):
        decode_times([student], 32, rounds=1)


def test_a_state_larger_than_the_memory_is_refused_before_it_is_made(student):
    with pytest.raises(MemoryError, match=r"1 rows of \d+ tokens takes .* use a shorter length"):
        efficiency([student], 2**44, 1)


def test_floors_count_weights_caches_and_products_once():
    """Qwen3-1.7B in bfloat16: 1,720,574,976 numbers; 28 layers of 8 heads of 128 keys and values."""
    teacher, student, length = qwen3_1p7b(), hypenet_2b(), 2**19
    numbers, norms = 1_720_574_976, 28 * (2 * 2048 + 2 * 128) + 2048
    work = decode_work(teacher, length, jnp.bfloat16)
    assert work.bytes == 2 * numbers + 28 * 2 * length * 8 * 128 * 2
    assert work.flops == 2 * (numbers - norms) + 28 * 4 * length * 16 * 128
    ratio = work.bytes / decode_work(student, length, jnp.bfloat16).bytes
    assert 3.3 < ratio < 3.8
    long, longer = (prefill_work(teacher, n, jnp.bfloat16).flops for n in (2**19, 2**20))
    assert 3.5 < longer / long < 4
    for config in (teacher, student):
        of_one = prefill_work(config, 1, jnp.bfloat16).flops
        assert of_one == pytest.approx(decode_work(config, 1, jnp.bfloat16).flops, rel=1e-3)


def test_floors_are_the_longer_of_moving_and_multiplying():
    report = roofline_rows("teacher", qwen3_1p7b(), (2**10, 2**16), "h200")
    work, chip = decode_work(qwen3_1p7b(), 2**16, jnp.bfloat16), CHIPS["h200"]
    seconds = report.value("decode_seconds_roofline", "teacher", 2**16, label="h200")
    assert seconds == work.bytes / chip.bandwidth
    work = prefill_work(qwen3_1p7b(), 2**16, jnp.bfloat16)
    seconds = report.value("prefill_seconds_roofline", "teacher", 2**16, label="h200")
    assert seconds == work.flops / chip.flops
    with pytest.raises(ValueError, match=r"'M4' is not known; there are v4, .*h200"):
        roofline_rows("teacher", qwen3_1p7b(), (1,), "M4")
