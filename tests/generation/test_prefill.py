"""Reading: a text is the same however it is cut, padded or packed, and takes the memory of one part."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax.generation.decode import GREEDY, decode, decode_until, init_carry, row_keys
from hypenet_jax.generation.generate import generate
from hypenet_jax.generation.prefill import (
    left_padded,
    load_context,
    prefill,
    prefill_part,
    save_context,
    start_context,
    unpacked,
    with_capacity,
)
from hypenet_jax.model.config import hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder, init_params
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.testing import random_params, tiny_teacher

pytestmark = pytest.mark.brief

VOCABULARY, LENGTH, WIDTH, NEW = 61, 200, 9, 4
ROOM = WIDTH + NEW
CLOSE = 1e-5
# One softmax and one lightning layer; a strong logit scale, so that positions show in both.
CONFIG = with_logit_scale(hypenet(tiny_teacher(VOCABULARY, layers=2), (0,)), LogLengthScale(4.0))
DECODER = Decoder(CONFIG, jnp.float32, scan=False)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(3).integers(0, VOCABULARY, LENGTH).astype(np.int32)


@jax.jit
def read(params, state, tokens, segment_ids):
    output = DECODER.apply({"params": params}, tokens, segment_ids=segment_ids, state=state)
    logits = DECODER.apply({"params": params}, output.hidden, method="logits")
    return logits, output.state


def assert_agree(actual, expected):
    """The rows of `actual` are all the one row of `expected`, up to 1e-5 of its largest number."""
    for mine, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        largest = np.maximum(1, np.abs(np.asarray(theirs)).max())
        same = np.broadcast_to(theirs, mine.shape)
        np.testing.assert_allclose(mine, same, atol=CLOSE * largest, rtol=0)


def padded(pieces, side):
    tokens, real = left_padded(pieces, LENGTH)
    if side == "left":
        return tokens, real
    shifts = [LENGTH - len(piece) for piece in pieces]
    roll = lambda x: np.stack([np.roll(r, -s) for r, s in zip(x, shifts, strict=True)])  # noqa: E731
    return roll(tokens), roll(real)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_cut_at_any_place_has_the_logits_and_the_state_of_the_whole(side, params, text):
    """One row of a batch for every place: the rows differ in padding alone."""
    cuts = range(1, LENGTH)
    whole, last = read(params, start_context(DECODER, 1, LENGTH).state, text[None], None)
    state, logits = start_context(DECODER, len(cuts), LENGTH).state, []
    for pieces in ([text[:cut] for cut in cuts], [text[cut:] for cut in cuts]):
        tokens, real = padded(pieces, side)
        new, state = read(params, state, tokens, real)
        logits.append([row[mask != 0] for row, mask in zip(np.asarray(new), real, strict=True)])
    assert_agree(np.stack([np.concatenate(row) for row in zip(*logits, strict=True)]), whole)
    assert_agree(state, last)


@pytest.mark.slow
@pytest.mark.parametrize("softmax_layers", [(0,), ()], ids=["hybrid", "recurrent"])
def test_a_text_read_in_two_calls_of_any_lengths_is_the_text_read_in_one(
    softmax_layers, text, monkeypatch
):
    """Each call reads in parts of eight tokens and what is left: eight programs do for all places of the cut."""
    config = with_logit_scale(
        hypenet(tiny_teacher(VOCABULARY, layers=2), softmax_layers), LogLengthScale(4.0)
    )
    decoder, params = DECODER.clone(config=config), random_params(config)
    whole = prefill(decoder, params, start_context(decoder, 1, LENGTH), text[None])
    monkeypatch.setattr(sys.modules[prefill.__module__], "PREFILL_PART", 8)
    for cut in range(1, LENGTH):
        context = start_context(decoder, 1, LENGTH)
        for part in (text[None, :cut], text[None, cut:]):
            context = prefill(decoder, params, context, part)
        assert_agree(context, whole)


@pytest.fixture(scope="module")
def documents(text):
    return [text[:5], text[5:7], text[7:16]]


def read_alone(params, document):
    tokens, real = left_padded([document], WIDTH)
    return prefill(DECODER, params, start_context(DECODER, 1, ROOM), tokens, segment_ids=real)


@pytest.fixture(scope="module")
def alone(params, documents):
    """What each document is continued by, alone in its row."""
    contexts = [read_alone(params, document) for document in documents]
    return np.concatenate([decode(DECODER, params, c, max_new_tokens=NEW).tokens for c in contexts])


def test_every_document_of_packed_rows_is_continued_as_alone(params, documents, alone):
    first, second, third = documents
    tokens = np.stack([np.concatenate([first, [-1, -1], second]), third, third])
    segment_ids = np.stack([[4] * 5 + [0, 0] + [7] * 2, [1] * 9, [1] * 9])
    rows, real = unpacked(tokens[:2], segment_ids[:2])
    assert rows.shape == (3, WIDTH)
    new = generate(DECODER, params, rows, segment_ids=real, max_new_tokens=NEW)
    np.testing.assert_array_equal(new, alone)
    last = generate(DECODER, params, tokens, segment_ids=segment_ids, max_new_tokens=NEW)
    np.testing.assert_array_equal(last[:2], alone[1:])


def test_rows_padded_left_right_and_between_have_the_logits_and_states_of_each_alone(
    params, documents
):
    tokens, real = left_padded(documents, WIDTH)
    between = [4, 0, 1, 5, 2, 6, 3, 7, 8]
    tokens[0], real[0] = tokens[0][between], real[0][between]
    tokens[1], real[1] = np.roll(tokens[1], 2), np.roll(real[1], 2)
    context = start_context(DECODER, 3, ROOM)
    context = prefill(DECODER, params, context, tokens, segment_ids=real)
    for row, document in enumerate(documents):
        mine = jax.tree.map(lambda x, row=row: x[row : row + 1], context)
        assert_agree(mine, read_alone(params, document))


def test_parts_of_padding_alone_are_not_read(params, text, monkeypatch):
    read = []
    monkeypatch.setattr(sys.modules[prefill.__module__], "PREFILL_PART", 8)
    monkeypatch.setattr(
        sys.modules[prefill.__module__],
        "prefill_part",
        lambda *given: read.append(given[3]) or given[2],
    )
    tokens, real = left_padded([text[:5], text[:9]], 32)
    prefill(DECODER, params, start_context(DECODER, 2, ROOM), tokens, segment_ids=real)
    np.testing.assert_array_equal(np.concatenate(read, axis=1), tokens[:, 16:])


def test_a_context_from_a_file_goes_on_as_the_one_that_was_saved(
    params, documents, alone, tmp_path
):
    context = with_capacity(read_alone(params, documents[2]), WIDTH)
    save_context(tmp_path / "read", DECODER, context)
    with pytest.raises(FileExistsError, match="is there already"):
        save_context(tmp_path / "read", DECODER, context)
    loaded = load_context(tmp_path / "read", DECODER)
    assert jax.tree.structure(loaded) == jax.tree.structure(context)
    jax.tree.map(np.testing.assert_array_equal, loaded, context)
    with pytest.raises(ValueError, match="room for 9"):
        decode(DECODER, params, loaded, max_new_tokens=NEW)
    more = decode(DECODER, params, with_capacity(loaded, ROOM), max_new_tokens=NEW)
    np.testing.assert_array_equal(more.tokens, alone[2:])


def test_a_context_of_another_model_and_none_at_all_are_errors(tmp_path):
    save_context(tmp_path / "read", DECODER, start_context(DECODER, 1, 4))
    other = DECODER.clone(config=with_logit_scale(CONFIG, LogLengthScale(5.0)))
    with pytest.raises(ValueError, match="read the text again"):
        load_context(tmp_path / "read", other)
    with pytest.raises(FileNotFoundError, match="holds no context"):
        load_context(tmp_path, DECODER)


def test_room_is_cut_to_what_is_held_and_no_further(params, documents):
    context = read_alone(params, documents[2])
    with pytest.raises(ValueError, match="9 tokens do not fit"):
        with_capacity(context, 8)
    cut = with_capacity(context, 9).state
    assert {
        x.shape[1] for x in (*jax.tree.leaves(cut.layers[0]), cut.cache_position.slot_segment_ids)
    } == {9}


def test_reading_and_writing_hold_no_copy_of_a_cache():
    """By the compiler's account of what a call holds besides parameters and state."""
    capacity = 2**16
    shapes = jax.eval_shape(lambda: (start_context(DECODER, 1, capacity), row_keys(None, 1)))
    start = jax.eval_shape(lambda context: init_carry(context, 8, (0,)), shapes[0])
    params = jax.eval_shape(lambda key: init_params(DECODER, key), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    cache = 4 * capacity * 2 * 8
    for program in (
        prefill_part.lower(DECODER, params, shapes[0], tokens, None),
        decode_until.lower(DECODER, params, start, shapes[1], 8, GREEDY, (0,)),
    ):
        held = program.compile().memory_analysis()
        assert held.temp_size_in_bytes < cache / 2
        assert held.alias_size_in_bytes > 2 * cache
