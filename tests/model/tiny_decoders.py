"""A tiny teacher and a tiny hybrid with random weights, and their calls compiled once per shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.axes import Params
from hypenet_jax.model.config import ModelConfig, hypenet, with_logit_scale
from hypenet_jax.model.decoder import Decoder, DecodeState, decode_state, init_params
from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.layers import Initialization
from hypenet_jax.model.mixers import SoftmaxSpec

BATCH, TIME, CAPACITY, VOCABULARY = 3, 24, 40, 61
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


def tiny_teacher(layers: int = 4, *, tied: bool = True) -> ModelConfig:
    return ModelConfig(VOCABULARY, 32, 48, (SoftmaxSpec(4, 2, 8, 1e4),) * layers, tied)


def tiny_hybrid() -> ModelConfig:
    """Softmax, two lightning layers, softmax; a strong logit scale, so that positions show in every layer."""
    return with_logit_scale(hypenet(tiny_teacher(), (0, 3)), LogLengthScale(4.0))


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Weights that are all random, norms too, so that one that is ignored shows. Nothing is compiled."""
    decoder, draws = Decoder(config, scan=False), np.random.default_rng(seed)
    paths, tree = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))
    )
    spread = {"kernel": (0.0, 0.2), "embedding": (0.0, 0.7), "scale": (1.0, 0.1)}
    leaves = [
        jnp.asarray(draws.normal(*spread[path[-1].key], leaf.shape), jnp.float32)
        for path, leaf in paths
    ]
    return jax.tree.unflatten(tree, leaves)
