"""Prefill, single steps and pieces against the official hybrid cache."""

import functools

import golden_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.model.decoder import decode_state

TOLERANCE = 3e-4
LIGHTNING, SOFTMAX = (1, 2, 4), (0, 3)
CAPACITY = 112
LENGTHS = (1, 40, 80)


@pytest.fixture(scope="module")
def go_on(load):
    """(state or None for an empty one, tokens) -> (logits, state).

    Tokens are padded to one of LENGTHS, so that three compilations serve all; padding must not matter.
    """
    decoder, params = load("hypenet")

    @functools.partial(jax.jit, donate_argnums=1)
    def call(params, state, tokens, segment_ids):
        output = decoder.apply({"params": params}, tokens, None, segment_ids, state)
        return decoder.apply({"params": params}, output.hidden, method="logits"), output.state

    def run(state, tokens):
        if state is None:
            state = decode_state(decoder.config, tokens.shape[0], CAPACITY, jnp.float32)
        time = tokens.shape[1]
        padding = min(length for length in LENGTHS if length >= time) - time
        padded, segments = (
            np.pad(x, ((0, 0), (0, padding))) for x in (tokens, np.ones_like(tokens))
        )
        logits, state = call(params, state, jnp.asarray(padded), jnp.asarray(segments))
        return logits[:, :time], state

    return run


@pytest.fixture(scope="module")
def tokens():
    return golden_recipe.tokens("decoding")


def states_are(golden, name, state):
    for i in LIGHTNING:
        golden.close(f"decoding/{name}.layer_{i}", state.layers[i].recurrent_state, atol=TOLERANCE)


@pytest.mark.parametrize(("case", "prefill"), [("a", 40), ("b", 70)])
def test_prefill_then_single_steps_give_the_official_logits(case, prefill, golden, go_on, tokens):
    logits, state = go_on(None, tokens[:, :prefill])
    golden.close(f"decoding/{case}.prefill_logits_last", logits[:, -1], atol=TOLERANCE)
    if case == "a":
        states_are(golden, "a.recurrent_state_after_prefill", state)
    steps = []
    for t in range(prefill, prefill + 8):
        logits, state = go_on(state, tokens[:, t : t + 1])
        steps.append(logits)
    steps = jnp.concatenate(steps, axis=1)
    golden.close(f"decoding/{case}.step_logits", steps, atol=TOLERANCE)
    whole, _ = go_on(None, tokens[:, : prefill + 8])
    np.testing.assert_allclose(steps, whole[:, prefill:], atol=1e-4)
    if case == "a":
        golden.close("decoding/a.full_logits", whole, atol=TOLERANCE)
        states_are(golden, "a.recurrent_state_final", state)
        for i in SOFTMAX:
            for name, cache in (("key", state.layers[i].keys), ("value", state.layers[i].values)):
                written = jnp.swapaxes(cache[:, : prefill + 8], 1, 2)
                golden.close(f"decoding/a.{name}_cache_final.layer_{i}", written, atol=TOLERANCE)


def test_a_text_in_three_pieces_gives_the_official_logits_and_states(golden, go_on, tokens):
    state = None
    for start, stop in ((0, 40), (40, 77), (77, 101)):
        logits, state = go_on(state, tokens[:, start:stop])
    golden.close("decoding/c.last_piece_logits", logits, atol=TOLERANCE)
    states_are(golden, "c.recurrent_state_final", state)


def test_greedy_decoding_picks_the_official_tokens(golden, go_on, tokens):
    logits, state = go_on(None, np.repeat(tokens[:1, :40], 2, axis=0))
    picked = []
    for _ in range(10):
        best = np.argmax(logits[:, -1:], axis=-1).astype(np.int32)
        picked.append(best[0, 0])
        logits, state = go_on(state, best)
    np.testing.assert_array_equal(picked, golden.outputs["decoding/d.greedy_tokens"])
