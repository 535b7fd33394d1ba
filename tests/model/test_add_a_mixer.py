"""A new mixer is its own file and one entry of MIXERS: `average.py` goes all the way with nothing else changed."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from average import AverageSpec
from tiny_decoders import CAPACITY, VOCABULARY, Model

from hypenet_jax.data.batch import Batch
from hypenet_jax.generation.generate import generate
from hypenet_jax.halo.align import AlignConfig, align_stage
from hypenet_jax.halo.selection.swept import SweptDecoder, swept_params
from hypenet_jax.halo.transfer import transfer, transfer_mixers, with_mixers
from hypenet_jax.model import mixers
from hypenet_jax.model.config import MixerOptions, ModelConfig, aligned_spec, hypenet
from hypenet_jax.model.cost import decode_work, layers_flops, prefill_work, state_bytes
from hypenet_jax.model.decoder import Decoder, decode_state
from hypenet_jax.model.stacking import stack_layers
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.plan.programs import serving_program
from hypenet_jax.sharding import MeshConfig, make_mesh
from hypenet_jax.testing import random_params, tiny_teacher
from hypenet_jax.weights import read_hf, save_hf

pytestmark = [pytest.mark.extended, pytest.mark.brief]
KEPT = (1,)
KEY = jax.random.key(0)
FILE = pathlib.Path(__file__).with_name("average.py")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "add_a_mixer.md"


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line besides the file."""
    monkeypatch.setattr(mixers, "MIXERS", (*mixers.MIXERS, AverageSpec))


@pytest.fixture
def teacher() -> Model:
    config = tiny_teacher(VOCABULARY)
    return Model(config, random_params(config))


@pytest.fixture
def student(teacher) -> Model:
    config = hypenet(teacher.config, KEPT, mixer="average")
    return Model(config, transfer(teacher.config, teacher.params, config, KEY))


@pytest.fixture
def imitations(teacher):
    """Mixers of stage 1 for all layers."""
    spec = aligned_spec(teacher.config, "average")
    return transfer_mixers(teacher.config, teacher.params, spec, KEY)


def test_a_student_is_made_of_it_by_name(student):
    assert student.config.mixers[0] == AverageSpec(num_heads=4, head_dim=8)
    assert student.config.softmax_layers == KEPT


def test_options_that_it_has_no_fields_for_are_refused_by_name(teacher):
    assert aligned_spec(teacher.config, "average", MixerOptions(rope=False, qk_norm=False))
    with pytest.raises(ValueError, match="the mixer average has no qk_norm, num_kv_heads"):
        aligned_spec(teacher.config, "average", MixerOptions(qk_norm=True, expand_kv=False))


def test_prefill_and_single_tokens_are_as_one_pass(student, tokens):
    """Two segments, padding between and before them."""
    row = np.asarray([0] * 3 + [1] * 8 + [0] * 2 + [2] * 11, np.int32)
    segment_ids = np.broadcast_to(row, tokens.shape)
    whole = student.hidden(tokens, segment_ids=segment_ids)
    hidden, state = student.go_on(student.empty(), tokens[:, :17], segment_ids[:, :17])
    parts = [hidden]
    for t in range(17, tokens.shape[1]):
        hidden, state = student.go_on(state, tokens[:, t : t + 1], segment_ids[:, t : t + 1])
        parts.append(hidden)
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1)[:, row != 0], whole[:, row != 0], atol=1e-5
    )


def test_it_generates_and_stacks(student, tokens):
    written = generate(student.decoder, student.params, tokens[:, :4], max_new_tokens=3)
    assert written.shape == (len(tokens), 3)
    stacked = Decoder(student.config, jnp.float32)
    params = stack_layers(student.params, student.config)
    hidden = stacked.apply({"params": params}, jnp.asarray(tokens)).hidden
    np.testing.assert_allclose(hidden, student.hidden(tokens), atol=1e-5)


@pytest.mark.parametrize("kept", [KEPT, ()])
def test_a_hugging_face_folder_gives_it_back(teacher, kept, tmp_path):
    config = hypenet(teacher.config, kept, mixer="average")
    params = transfer(teacher.config, teacher.params, config, KEY)
    save_hf(tmp_path / "student", config, params, dtype="float32")
    read, leaves = read_hf(tmp_path / "student")
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, leaves, params)


def test_a_folder_does_not_claim_that_transformers_can_load_it(student, tmp_path, caplog):
    save_hf(tmp_path / "student", student.config, student.params)
    assert "does not compute the mixer average" in caplog.text
    assert "auto_map" not in (tmp_path / "student" / "config.json").read_text()
    assert not list((tmp_path / "student").glob("*.py"))
    card = (tmp_path / "student" / "README.md").read_text()
    assert "AutoModel" not in card
    assert "library_name" not in card
    assert "not in the PyTorch code" in card


def test_every_stage_takes_it(teacher, student, imitations, tokens):
    spec = aligned_spec(teacher.config, "average")
    frozen, decoder = (
        stack_layers(teacher.params, teacher.config),
        Decoder(teacher.config, jnp.float32),
    )
    ones = jnp.ones(tokens.shape, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = Batch(jnp.asarray(tokens), ones, positions, ones.astype(jnp.float32))
    loss = align_stage(AlignConfig(), decoder, spec).loss
    gradients = jax.grad(lambda m: loss({"mixers": m}, frozen, batch)[0].value())(imitations)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))

    started = with_mixers(student.params, student.config, imitations)
    jax.tree.map(np.testing.assert_array_equal, started, student.params)

    swept = SweptDecoder(decoder, spec).apply(
        {"params": swept_params(frozen, imitations, (0,))}, batch.tokens
    )
    np.testing.assert_allclose(
        swept.hidden, _replaced(teacher, imitations).hidden(tokens), atol=1e-5
    )


def _replaced(teacher: Model, imitations) -> Model:
    """The teacher with layer 0 replaced."""
    specs = (aligned_spec(teacher.config, "average"), *teacher.config.mixers[1:])
    config = dataclasses.replace(teacher.config, mixers=specs)
    return Model(config, with_mixers(teacher.params, config, imitations))


def test_its_costs_count(student):
    state = decode_state(student.config, 1, CAPACITY, jnp.float32)
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert state_bytes(student.config, CAPACITY, jnp.float32) == nbytes
    parts = layers_flops(student.config, 7) + layers_flops(student.config, 5, before=7)
    assert parts == layers_flops(student.config, 12)
    assert decode_work(student.config, 1, jnp.float32).flops == pytest.approx(
        prefill_work(student.config, 1, jnp.float32).flops
    )


def test_a_plan_shards_its_state(student):
    serve = ServeConfig(
        model=dataclasses.replace(student.config, vocab_size=62),
        task="decode",
        batch=4,
        context_length=32,
        mesh=MeshConfig(tensor=2),
    )
    program = serving_program(serve, make_mesh(serve.mesh))
    total = program.arguments[2].context.state.layers[0].total
    assert total.sharding.shard_shape(total.shape) == (1, 2, 8)


def test_what_is_not_listed_is_refused_by_name(teacher, monkeypatch):
    monkeypatch.setattr(mixers, "MIXERS", mixers.MIXERS[:-1])
    with pytest.raises(ValueError, match="no mixer 'average'; there are softmax, lightning"):
        hypenet(teacher.config, KEPT, mixer="average")
    with pytest.raises(
        ValueError, match=r"layer 0 is AverageSpec.*MIXERS has SoftmaxSpec, LightningSpec"
    ):
        ModelConfig(
            vocab_size=8, d_model=8, d_mlp=8, mixers=(AverageSpec(1, 8),), tie_embeddings=True
        )


def test_the_page_on_adding_a_mixer_shows_this_file():
    assert f"```python\n{FILE.read_text(encoding='utf-8')}```" in PAGE.read_text(encoding="utf-8")
