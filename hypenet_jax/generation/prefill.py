"""Prefill: prompts of any length and padding go into the decode state part by part, in the memory of one part.

What was read is a context: it is continued, given more room, or saved for another process.
"""

import dataclasses
import functools
from collections.abc import Sequence
from os import PathLike
from typing import Any, TypeAlias, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int
from orbax.checkpoint import v1 as ocp

from hypenet_jax.axes import Params, SegmentIds, Tokens
from hypenet_jax.explicit_axes import left_to_compiler
from hypenet_jax.model.decoder import Decoder, DecodeState, activation_axes, decode_state
from hypenet_jax.model.stacking import unstack_layers
from hypenet_jax.sharding import constrain

TokenRow: TypeAlias = Int[np.ndarray, " _"]
PaddedRows: TypeAlias = tuple[Int[np.ndarray, "R S"], Int[np.ndarray, "R S"]]
"""Token ids, and their segment ids."""

# Prompts are read in parts of this many tokens, so that activations do not grow with the prompt.
PREFILL_PART = 2048


# Not checked at construction: tree functions build contexts of shapes and shardings.
@no_type_check
@flax.struct.dataclass
class Context:
    """All that is needed to go on, now or from a file: the state after each row's last token, logits of its next."""

    state: DecodeState
    logits: Float[Array, "B V"]


@left_to_compiler(activation_axes)
def start_context(decoder: Decoder, batch: int, capacity: int) -> Context:
    """The context before the first token, with room for `capacity` tokens per row, read or written."""
    state = decode_state(decoder.config, batch, capacity, decoder.dtype)
    return Context(state, jnp.zeros((batch, decoder.config.vocab_size), jnp.float32))


def prefill(
    decoder: Decoder,
    params: Params,
    context: Context,
    prompts: Tokens | Int[np.ndarray, "B T"],
    *,
    segment_ids: Int[np.ndarray, "B T"] | None = None,
) -> Context:
    """Reads prompts after what `context` holds; a row of padding alone stays where it was.

    `context` is donated, as its caches are updated in place: copy it first to use it twice.

    Args:
      prompts: token ids; at padding any number.
      segment_ids: as the decoder reads them: 0 is padding, on either side or between; a number other than the row's
        last one starts a new document, and a row goes on with its last alone. None: no padding, all go on with theirs.
    Raises:
      ValueError: a row would hold no token at all, or more than it has room for; unknown token ids.
    """
    prompts = np.asarray(prompts)
    real = np.ones_like(prompts) if segment_ids is None else np.asarray(segment_ids)
    prompts = np.where(real != 0, prompts, 0)
    lengths = np.asarray(context.state.lengths) + np.count_nonzero(real, axis=1)
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError(
            "a prompt is empty; give at least one token, such as the end-of-text token"
        )
    check_tokens(prompts, decoder.config.vocab_size)
    check_capacity(lengths, context.state.cache_position.capacity)
    decoder, params = decoder.clone(scan=False, remat="none"), unstack_layers(params)
    context = _beside(params, context)
    for start in range(0, prompts.shape[1], PREFILL_PART):
        part = np.s_[:, start : start + PREFILL_PART]
        if real[part].any():
            segments = None if segment_ids is None else real[part]
            context = prefill_part(decoder, params, context, prompts[part], segments)
    return context


def _beside(params: Params, context: Context) -> Context:
    """The context bound to the device that the parameters are bound to, as all that is computed from them is: so no
    program is compiled once for the first part and once more for the others."""
    leaf = jax.tree.leaves(params)[0]
    bound = isinstance(leaf, jax.Array) and leaf.committed and len(leaf.devices()) == 1
    return jax.device_put(context, *leaf.devices()) if bound else context


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@left_to_compiler(activation_axes)
def prefill_part(
    decoder: Decoder,
    params: Params,
    context: Context,
    tokens: Tokens,
    segment_ids: SegmentIds | None,
) -> Context:
    """One compiled call of `prefill`; the logits are those after each row's last real token so far."""
    output = decoder.apply({"params": params}, tokens, segment_ids=segment_ids, state=context.state)
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    real = segment_ids != 0
    last = tokens.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    new = decoder.apply({"params": params}, hidden, method="logits")[:, 0]
    some = jnp.any(real, axis=1, keepdims=True)
    return replicated_lengths(Context(output.state, jnp.where(some, new, context.logits)))


def replicated_lengths(context: Context) -> Context:
    """The same with the lengths of all rows on every device, as each process reads them."""
    state, lengths = context.state, constrain(context.state.lengths, (None,))
    position = dataclasses.replace(state.cache_position, written=lengths)
    return Context(DecodeState(state.layers, position), context.logits)


def with_capacity(context: Context, capacity: int) -> Context:
    """The same with room for `capacity` tokens per row: to go on, or to store less; ValueError where one has more."""
    check_capacity(context.state.lengths, capacity)
    return dataclasses.replace(context, state=context.state.with_capacity(capacity))


def save_context(folder: str | PathLike[str], decoder: Decoder, context: Context) -> None:
    """Writes a context into a new folder with all the room of its caches; `with_capacity` cuts it to what they hold."""
    path = epath.Path(folder).absolute()
    if path.exists():
        raise FileExistsError(f"{path} is there already; name a new folder or remove this one")
    batch, capacity = context.state.cache_position.slot_segment_ids.shape
    made_for = {"model": repr(decoder.config), "batch": batch, "capacity": capacity}
    ocp.save(path, context, custom_metadata=made_for)


def load_context(folder: str | PathLike[str], decoder: Decoder) -> Context:
    """What `save_context` wrote, for a decoder of the same config, on this process's first device.

    Caches take the decoder's dtype. That the parameters are the same is the caller's care.

    Raises:
      FileNotFoundError: no context is there.
      ValueError: a model of another config read it.
    """
    path = epath.Path(folder).absolute()
    made_for: Any = ocp.metadata(path).custom_metadata if ocp.is_orbax_checkpoint(path) else None
    if not isinstance(made_for, dict) or "model" not in made_for:
        raise FileNotFoundError(f"{path} holds no context; write one with save_context")
    if made_for["model"] != repr(decoder.config):
        raise ValueError(
            f"{path} was read by {made_for['model']}, this is {decoder.config}; read the text again"
        )
    local = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: start_context(decoder, made_for["batch"], made_for["capacity"]))
    return ocp.load(path, jax.tree.map(lambda x: x.update(sharding=local), shapes))


def left_padded(rows: Sequence[TokenRow], width: int) -> PaddedRows:
    """Token ids of rows of any lengths up to `width`, and their segment ids: 1, and 0 before a row begins."""
    tokens, segment_ids = (np.zeros((len(rows), width), np.int32) for _ in range(2))
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = row
        segment_ids[i, width - len(row) :] = 1
    return tokens, segment_ids


def unpacked(tokens: Int[np.ndarray, "B T"], segment_ids: Int[np.ndarray, "B T"]) -> PaddedRows:
    """Each document of packed rows in a row of its own, in reading order: what continues every one of them."""
    documents: list[np.ndarray] = []
    for row, numbers in zip(tokens, segment_ids, strict=True):
        row, numbers = row[numbers != 0], numbers[numbers != 0]
        documents += np.split(row, np.flatnonzero(np.diff(numbers)) + 1)
    documents = [document for document in documents if len(document)]
    return left_padded(documents, max(map(len, documents), default=0))


def check_tokens(tokens: Int[np.ndarray, "..."], vocabulary: int) -> None:
    """Raises ValueError: token ids outside the vocabulary."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocabulary):
        raise ValueError(
            f"token ids from {tokens.min()} to {tokens.max()} are not all in the vocabulary of {vocabulary}: "
            "use the tokenizer that the model was trained with"
        )


def check_capacity(lengths: Int[Array | np.ndarray, "B"], capacity: int) -> None:
    """Raises ValueError if a row has more tokens than the state has slots."""
    longest = np.asarray(lengths).max(initial=0)
    if longest > capacity:
        raise ValueError(
            f"{longest} tokens do not fit into a state with room for {capacity}; make it larger"
        )
