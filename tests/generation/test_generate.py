"""Generation: greedy is the argmax of full passes, rows do not see each other, draws follow their key."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from hypenet_jax.generation.decode import Sampling, decode, draw, stream_span
from hypenet_jax.generation.generate import generate
from hypenet_jax.generation.prefill import prefill, start_context
from hypenet_jax.model.config import ModelConfig, hypenet
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec

pytestmark = pytest.mark.brief

NEW = 6
TEACHER = ModelConfig(
    vocab_size=24,
    d_model=16,
    d_mlp=24,
    mixers=(SoftmaxSpec(2, 1, 8, rope_theta=1e4),) * 2,
    tie_embeddings=True,
)


def model(config):
    decoder = Decoder(config, jnp.float32, start=Initialization(std=0.5, embedding_std=1.0))
    return decoder, jax.jit(lambda key: init_params(decoder, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def student():
    """One lightning and one softmax layer."""
    return model(hypenet(TEACHER, (1,)))


@pytest.fixture
def prompts():
    return np.random.default_rng(1).integers(0, TEACHER.vocab_size, (2, 5)).astype(np.int32)


@pytest.fixture
def write(student):
    """Continues prompts with the student."""
    return lambda prompts, **options: generate(
        *student, prompts, **{"max_new_tokens": NEW, **options}
    )


@functools.partial(jax.jit, static_argnums=0)
def likeliest(decoder, params, tokens):
    """The likeliest next token at every place, by a full pass."""
    hidden = decoder.apply({"params": params}, tokens).hidden
    return jnp.argmax(decoder.apply({"params": params}, hidden, method="logits"), -1)


def greedy_by_full_passes(decoder, params, read):
    """What is written after this text: every token from a pass over all before it."""
    row = np.resize(read, 24)  # what stands behind is not read
    for place in range(read.size, read.size + NEW):
        row[place] = likeliest(decoder, params, row[None])[0, place - 1]
    return row[read.size : read.size + NEW]


@pytest.mark.parametrize("config", [TEACHER, hypenet(TEACHER, (1,))])
def test_greedy_writes_the_likeliest_token_of_a_full_pass_at_every_place(config, prompts):
    decoder, params = model(config)
    new = generate(decoder, params, prompts, max_new_tokens=NEW)
    assert new.shape == (2, NEW)
    full = np.concatenate([prompts, new], axis=1)
    best = np.asarray(likeliest(decoder, params, full))
    np.testing.assert_array_equal(new, best[:, prompts.shape[1] - 1 : -1])
    assert len(np.unique(new)) > 2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0)])
def test_shorter_prompts_padded_on_either_side_write_what_they_write_alone(
    write, prompts, sampling
):
    keys = jax.random.split(jax.random.key(5), 2)
    alone = [
        write(prompts[:1], sampling=sampling, key=keys[:1]),
        write(prompts[1:, :3], sampling=sampling, key=keys[1:]),
    ]
    for pad in ((0, 2), (2, 0)):
        ragged, real = prompts.copy(), np.ones_like(prompts)
        ragged[1] = np.pad(prompts[1, :3], pad, constant_values=7)
        real[1] = np.pad(np.ones(3, np.int32), pad)
        together = write(ragged, segment_ids=real, sampling=sampling, key=keys)
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_prompts_read_in_parts_are_prompts_read_at_once(write, prompts, monkeypatch):
    whole = write(prompts)
    ragged, real = prompts.copy(), np.ones_like(prompts)
    real[1, 2:] = 0
    short = write(ragged, segment_ids=real)
    monkeypatch.setattr(sys.modules[prefill.__module__], "PREFILL_PART", 2)
    np.testing.assert_array_equal(write(prompts), whole)
    np.testing.assert_array_equal(write(ragged, segment_ids=real), short)


def test_the_stop_token_ends_a_row_and_fills_it_up(write, prompts):
    free = write(prompts)
    stop = int(free[0, 2])
    stopped = write(prompts, stop_token=stop)
    for before, after in zip(free, stopped, strict=True):
        ends = np.flatnonzero(before == stop)
        end = int(ends[0]) if len(ends) else NEW
        np.testing.assert_array_equal(after[:end], before[:end])
        assert (after[end:] == stop).all()


def test_the_same_key_draws_the_same_and_another_key_does_not(write, prompts):
    hot = Sampling(temperature=2.0)
    first, same, other = (
        write(prompts, sampling=hot, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_what_a_row_draws_does_not_depend_on_the_rows_beside_it(write, prompts):
    hot = {"sampling": Sampling(temperature=2.0), "key": jax.random.key(3)}
    np.testing.assert_array_equal(write(prompts, **hot)[:1], write(prompts[:1], **hot))


def test_any_of_several_stop_tokens_ends_a_row_and_the_first_fills_it_up(write, prompts):
    free = write(prompts)
    stops = (int(free[0, 1]), int(free[1, 3]))
    stopped = write(prompts, stop_token=stops)
    for before, after in zip(free, stopped, strict=True):
        end = int(np.flatnonzero(np.isin(before, stops))[0]) + 1
        np.testing.assert_array_equal(after[:end], before[:end])
        assert (after[end:] == stops[0]).all()


def test_streamed_tokens_are_those_written_and_none_after_a_row_ends(write, prompts):
    stop = int(write(prompts)[0, 1])
    heard = [[], []]
    options = {
        "stop_token": stop,
        "on_tokens": lambda new: [h.extend(n) for h, n in zip(heard, new, strict=True)],
    }
    for row, new in zip(heard, write(prompts, **options), strict=True):
        end = [*new.tolist(), stop].index(stop) + 1
        assert row == new[:end].tolist()


@pytest.fixture
def compiled():
    """Programs compiled since."""
    names = []

    def hear(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    monitoring.register_event_duration_secs_listener(hear)
    yield names
    monitoring.unregister_event_duration_listener(hear)


def test_rows_that_end_elsewhere_in_a_stream_compile_nothing_new(write, prompts, compiled):
    options = {
        "sampling": Sampling(2.0),
        "stop_token": (0, 1, 2, 3),
        "on_tokens": lambda new: None,
        "max_new_tokens": 2 * stream_span() + 1,
    }
    first = write(prompts, key=jax.random.key(0), **options)
    assert compiled
    compiled.clear()
    others = [write(prompts[::-1], key=jax.random.key(seed), **options) for seed in range(1, 9)]
    assert not compiled
    ends = {tuple((new < 4).argmax(axis=1)) for new in (first, *others)}
    assert len(ends) > 3


def test_a_row_ends_where_its_logits_are_nan_and_the_others_go_on(student, write, prompts):
    context = prefill(*student, start_context(student[0], 2, 5 + NEW), prompts)
    context = context.replace(logits=context.logits.at[0].set(jnp.nan))
    written = decode(*student, context, max_new_tokens=NEW)
    assert written.broken.tolist() == [True, False]
    assert written.lengths.tolist() == [0, NEW]
    np.testing.assert_array_equal(written.tokens[1], write(prompts)[1])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0)])
def test_writing_in_two_calls_is_writing_in_one(student, write, prompts, sampling):
    key = jax.random.key(2)
    context = prefill(*student, start_context(student[0], 2, 5 + NEW), prompts)
    parts = []
    for _ in range(2):
        part = decode(*student, context, max_new_tokens=NEW // 2, sampling=sampling, key=key)
        context = part.context
        parts.append(part.tokens)
    whole = write(prompts, sampling=sampling, key=key)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_an_ended_row_goes_on_with_its_next_prompt_as_if_read_at_once(student, write, prompts):
    first = write(prompts)
    stop = int(first[0, 0])
    assert stop not in first[1]
    context = prefill(*student, start_context(student[0], 2, 5 + 2 * NEW + 2), prompts)
    turn = decode(*student, context, max_new_tokens=NEW, stop_token=stop)
    assert turn.lengths.tolist() == [1, NEW]
    more = np.asarray([[3, 4], [5, 6]], np.int32)
    context = prefill(*student, turn.context, more)
    second = decode(*student, context, max_new_tokens=NEW).tokens
    for row in range(2):
        read = np.concatenate([prompts[row], first[row, : turn.lengths[row]], more[row]])
        np.testing.assert_array_equal(second[row], greedy_by_full_passes(*student, read))


def test_nan_logits_and_a_full_state_are_errors(student, prompts):
    decoder, params = student
    context = prefill(decoder, params, start_context(decoder, 2, 5), prompts)
    with pytest.raises(ValueError, match="room for 5"):
        decode(decoder, params, context, max_new_tokens=1)
    with pytest.raises(ValueError, match="5 tokens do not fit into a state with room for 4"):
        prefill(decoder, params, start_context(decoder, 2, 4), prompts)
    with pytest.raises(ValueError, match="read no token"):
        decode(decoder, params, start_context(decoder, 2, 5), max_new_tokens=1)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(FloatingPointError, match=r"rows \[0, 1\]"):
        generate(decoder, nan, prompts, max_new_tokens=NEW)


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6)])
def test_a_draw_among_the_likeliest_alone_is_greedy(write, prompts, sampling):
    drawn = write(prompts, sampling=sampling, key=jax.random.key(0))
    np.testing.assert_array_equal(drawn, write(prompts))


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1.0), {0, 1, 2, 3}),
        (Sampling(1.0, top_k=2), {0, 2}),
        (Sampling(1.0, top_p=0.7), {0, 2}),
        (Sampling(1.0, top_k=9, top_p=0.9), {0, 1, 2}),
    ],
)
def test_draws_have_the_probabilities_of_the_tokens_that_are_left(sampling, allowed):
    probabilities = np.asarray([0.5, 0.2, 0.25, 0.05])
    count = 4000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32))[None], (count, 4))
    drawn = np.asarray(draw(logits, jax.random.split(jax.random.key(0), count), sampling))
    share = np.bincount(drawn, minlength=4) / count
    left = np.where([i in allowed for i in range(4)], probabilities, 0)
    np.testing.assert_allclose(share, left / left.sum(), atol=0.03)
    assert set(np.flatnonzero(share)) == allowed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": np.zeros((1, 0), np.int32)}, "prompt is empty"),
        ({"prompts": np.zeros((0, 3), np.int32)}, "prompt is empty"),
        ({"segment_ids": np.asarray([[1, 1, 1], [0, 0, 0]])}, "prompt is empty"),
        ({"prompts": np.full((1, 3), 24, np.int32)}, "vocabulary of 24"),
        ({"prompts": np.full((1, 3), -1, np.int32)}, "vocabulary of 24"),
        ({"max_new_tokens": 0}, "use at least 1"),
        ({"sampling": Sampling(1.0)}, "give a key"),
    ],
)
def test_what_cannot_be_continued_is_refused(write, options, said):
    given = {"prompts": np.zeros((2, 3), np.int32), **options}
    with pytest.raises(ValueError, match=said):
        write(given.pop("prompts"), **given)


@pytest.mark.parametrize(
    "fields", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_settings_of_draws_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match="are needed"):
        Sampling(**fields)
