"""The only list of mixers. A new one is a file beside these and a line in each function here."""

from typing import Any

from jax.typing import DTypeLike

from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers.lightning import (
    MEMORY_AXES,
    LightningMixer,
    LightningSpec,
    LightningState,
    empty_memory,
)
from hypenet_jax.model.mixers.softmax import KV_AXES, KVState, SoftmaxMixer, SoftmaxSpec, empty_kv

MixerSpec = SoftmaxSpec | LightningSpec
MixerState = KVState | LightningState


def make_mixer(
    spec: MixerSpec,
    *,
    d_model: int,
    norm_eps: float,
    start: Initialization,
    dtype: DTypeLike,
    name: str | None = None,
) -> Any:
    """The module of a spec: `(x, layout, state, norm, residual) -> (residual + mixer(norm(x)), state)`.

    state None means from the start, nothing kept; norm or residual None are left out.

    Its type is Any because each mixer takes the state of its own kind alone, which a spec decides and a type cannot.
    """
    kind = {SoftmaxSpec: SoftmaxMixer, LightningSpec: LightningMixer}[type(spec)]
    return kind(spec, d_model, norm_eps, start, dtype, name=name)


def empty_state(spec: MixerSpec, batch: int, capacity: int, dtype: DTypeLike) -> MixerState:
    """What a mixer remembers before the first token; only softmax attention needs room per token."""
    if isinstance(spec, SoftmaxSpec):
        return empty_kv(spec, batch, capacity, dtype)
    return empty_memory(spec, batch)


def state_axes(spec: MixerSpec) -> tuple[str, ...]:
    """Logical names of the axes of every array in a mixer's state."""
    return KV_AXES if isinstance(spec, SoftmaxSpec) else MEMORY_AXES
