"""Published sizes at full width, on paper: `eval_shape` uses no memory."""

import math

import jax
import pytest

from hypenet_jax.model import presets
from hypenet_jax.model.decoder import Decoder, decode_state, init_params
from hypenet_jax.model.mixers import LightningSpec, SoftmaxSpec

# Totals of the published safetensors files.
QWEN3 = {
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
}
HYPENET = {
    "hypenet_2b": ("qwen3_1p7b", (2, 3, 6, 8, 9, 21, 25)),
    "hypenet_5b": ("qwen3_4b", (0, 1, 7, 14, 15, 22, 24, 31, 33)),
    "hypenet_9b": ("qwen3_8b", (1, 2, 4, 6, 7, 10, 24, 33, 34)),
}


def count(name):
    decoder = Decoder(getattr(presets, name)())
    shapes = jax.eval_shape(lambda key: init_params(decoder, key), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", QWEN3)
def test_a_qwen3_has_the_published_number_of_parameters(name):
    assert count(name) == QWEN3[name]


@pytest.mark.parametrize("name", HYPENET)
def test_a_hypenet_adds_gates_wider_keys_and_values_and_a_joint_norm(name):
    teacher, softmax_layers = HYPENET[name]
    config = getattr(presets, name)()
    assert config.softmax_layers == softmax_layers
    heads, width, kv_heads = config.mixers[0].num_heads, 128, 8
    gates = config.num_layers * config.d_model * heads * width
    lightning = config.num_layers - len(softmax_layers)
    wider = lightning * 2 * config.d_model * (heads - kv_heads) * width
    assert count(name) == QWEN3[teacher] + gates + wider + lightning * heads * width


@pytest.mark.parametrize("name", HYPENET)
def test_a_hypenet_has_positions_in_lightning_layers_alone(name):
    for i, spec in enumerate(getattr(presets, name)().mixers):
        if i in HYPENET[name][1]:
            assert isinstance(spec, SoftmaxSpec)
            assert (spec.rope_theta, spec.output_gate, spec.num_kv_heads) == (None, True, 8)
        else:
            assert isinstance(spec, LightningSpec)
            assert (spec.rope_theta, spec.scale) == (1e6, "1/sqrt(d)")
            assert spec.qk_norm
            assert spec.output_norm
            assert spec.output_gate


@pytest.mark.parametrize(
    ("name", "cache_per_token", "memory"),
    [
        ("hypenet_2b", 28_672, 22_020_096),
        ("hypenet_5b", 36_864, 56_623_104),
        ("hypenet_9b", 36_864, 56_623_104),
    ],
)
def test_the_state_has_the_published_size(name, cache_per_token, memory):
    """Bytes of one sequence in bfloat16: caches by token, recurrent state whatever the length."""
    config = getattr(presets, name)()
    layers = jax.eval_shape(
        lambda: [jax.tree.leaves(x) for x in decode_state(config, 1, 1000).layers]
    )
    size = {SoftmaxSpec: 0, LightningSpec: 0}
    for spec, layer in zip(config.mixers, layers, strict=True):
        size[type(spec)] += sum(math.prod(x.shape) * x.dtype.itemsize for x in layer)
    assert size == {SoftmaxSpec: 1000 * cache_per_token, LightningSpec: memory}
