import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.evals import efficiency
from hypenet_jax.evals.efficiency import cursor_at, filled_state, prefill_times, state_bytes
from hypenet_jax.model.decoder import decode_state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("capacity", [16, 100])
def test_state_bytes_by_formula_are_those_of_the_arrays(teacher, student, capacity, dtype):
    for subject in (teacher, student):
        config = subject.decoder.config
        state = decode_state(config, 1, capacity, dtype)
        measured = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert state_bytes(config, capacity, dtype) == measured


def test_every_model_is_timed_at_every_length_and_compared_with_the_first(
    teacher, student, monkeypatch
):
    monkeypatch.setattr(efficiency, "PREFILL_PART", 32)
    report = efficiency.efficiency([teacher, student], [64], rounds=2)
    for metric in ("prefill", "decode"):
        assert report.value(f"{metric}_seconds", "teacher", 64) > 0
        assert report.select(f"{metric}_speedup").models == ("student",)
    row = report.select("prefill_seconds", "student").rows[0]
    assert row.low <= row.value <= row.high
    assert row.count == 2
    for model in ("teacher", "student"):
        assert report.value("state_bytes", model) == report.value("state_bytes_formula", model)


def test_a_filled_state_goes_on_where_a_read_context_would(student):
    single = student.with_single_layers()
    tokens = jnp.ones((1, 12), jnp.int32)
    state = decode_state(single.decoder.config, 1, 16, jnp.float32)
    read = jax.jit(
        lambda state: single.decoder.apply({"params": single.params}, tokens, state=state)
    )
    read = read(state).state
    filled = filled_state(single.decoder, 16).replace(cursor=cursor_at(16, 12))
    assert jax.tree.structure(filled) == jax.tree.structure(read)
    for mine, theirs in zip(*map(jax.tree.leaves, (filled.cursor, read.cursor)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_single_layers_are_the_same_model(student, log_probs):
    tokens = np.arange(40, dtype=np.int32)[None]
    expected = log_probs(student, tokens)
    np.testing.assert_allclose(log_probs(student.with_single_layers(), tokens), expected, atol=1e-5)


def test_a_length_that_does_not_split_into_parts_is_refused(student):
    with pytest.raises(ValueError, match="length 3000 is not a multiple of 2048; use 2048"):
        prefill_times([student], 3000, rounds=1)
