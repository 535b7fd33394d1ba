"""A tiny teacher and a tiny hybrid with random weights, and their calls compiled once per shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig, hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.layers import Initialization
from hypenet_jax.testing import tiny_teacher

BATCH, TIME, CAPACITY, VOCABULARY = 3, 24, 40, 61
TEACHER = tiny_teacher(VOCABULARY, layers=4)
WIDE_START = Initialization(std=0.2)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of single layers in float32; its calls are compiled once per shape, BATCH rows of TIME tokens."""

    config: ModelConfig
    params: Params

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.config, jnp.float32, scan=False)

    @functools.cached_property
    def _call(self):
        apply = lambda params, *arguments: self.decoder.apply({"params": params}, *arguments)  # noqa: E731
        return jax.jit(apply)

    def hidden(self, tokens, positions=None, segment_ids=None):
        return np.asarray(
            self._call(self.params, *map(_array, (tokens, positions, segment_ids))).hidden
        )

    def empty(self) -> DecodeState:
        return decode_state(self.config, BATCH, CAPACITY, jnp.float32)

    def go_on(self, state, tokens, segment_ids):
        output = self._call(self.params, _array(tokens), None, _array(segment_ids), state)
        return np.asarray(output.hidden), output.state


def _array(x):
    return None if x is None else jnp.asarray(x)


def tiny_hybrid() -> ModelConfig:
    """Softmax, two lightning layers, softmax; a strong logit scale, so that positions show in every layer."""
    return with_logit_scale(hypenet(TEACHER, (0, 3)), LogLengthScale(4.0))
