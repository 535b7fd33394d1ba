"""A teacher of two layers, the text it reads, and programs that are compiled once."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypenet_jax import runtime
from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch, make_row, stack_rows
from hypenet_jax.halo.distill import DistillConfig
from hypenet_jax.halo.method import Models, Weights, Work, abstract_params
from hypenet_jax.halo.transfer import transfer_mixers
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, ModelConfig, aligned_spec, hypenet
from hypenet_jax.model.decoder import Decoder, Output, Tap
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec
from hypenet_jax.model.stacking import stack_layers, unstack_layers
from hypenet_jax.sharding import MeshConfig, make_mesh, place_batch
from hypenet_jax.testing import random_params

CONFIG = ModelConfig(
    vocab_size=30,
    d_model=16,
    d_mlp=24,
    mixers=(SoftmaxSpec(4, 2, 8, rope_theta=1e4),) * 2,
    tie_embeddings=True,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder with its parameters, in runs and in single layers."""

    decoder: Decoder
    params: Params

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def single(self) -> Params:
        return unstack_layers(self.params)

    def hidden(self, batch: Batch) -> np.ndarray:
        return np.asarray(_read(self.decoder, self.params, batch).hidden)

    def log_probs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Of the next token at every token, "B T V", in float64 from all logits of a tied head."""
        table = np.asarray(self.params["embed"]["embedding"], np.float64)
        logits = self.hidden(batch).astype(np.float64) @ table.T / temperature
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def taps(self, batch: Batch) -> Tap:
        return _read(self.decoder, self.params, batch).taps


@functools.partial(jax.jit, static_argnums=0)
def _read(decoder: Decoder, params: Params, batch: Batch) -> Output:
    text = (batch.tokens, batch.positions, batch.segment_ids)
    return decoder.apply({"params": params}, *text, taps=True)


def _random(config: ModelConfig, seed: int) -> Model:
    """All weights random, norms included."""
    params = stack_layers(random_params(config, seed), config)
    return Model(Decoder(config, jnp.float32), params)


@pytest.fixture(scope="session")
def model():
    """Any model with random weights: `model(config, seed)`."""
    return _random


@pytest.fixture(scope="session")
def teacher() -> Model:
    return _random(CONFIG, 0)


@pytest.fixture(scope="session")
def stage_one(teacher: Model) -> Callable[[MixerSpec], Any]:
    """Stage-1 mixers of all layers, stacked, of any spec."""

    def made(spec: MixerSpec) -> Any:
        make = jax.jit(lambda key: transfer_mixers(teacher.config, teacher.single, spec, key))
        return make(jax.random.key(1))

    return made


@pytest.fixture(scope="session")
def mixers(teacher: Model, stage_one: Callable[[MixerSpec], Any]) -> Any:
    """Those of the published spec."""
    return stage_one(aligned_spec(teacher.config))


@pytest.fixture(scope="session")
def student(teacher: Model, mixers: Any) -> Model:
    """A student at the start of stage 2: layer 0 lightning, layer 1 softmax."""
    decoder = teacher.decoder.clone(config=hypenet(teacher.config, (1,)))
    models = Models(teacher=teacher.decoder, student=decoder, mixer="lightning")
    weights = Weights(teacher=teacher.params, parent={"mixers": mixers})
    alone = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings, method = abstract_params(decoder).shardings(alone), DistillConfig(start_from="align")
    params = method.initial_weights(models, weights, runtime.keys(2), shardings)
    return Model(decoder, params)


def _batch(*rows: tuple[int, ...]) -> Batch:
    """Rows of documents of these lengths, filled up with padding to twelve tokens."""
    rng, made = np.random.default_rng(0), []
    for lengths in rows:
        segments = np.zeros(12, np.int32)
        segments[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        tokens = rng.integers(0, CONFIG.vocab_size, 12).astype(np.int32)
        made.append(make_row(tokens * (segments > 0), segments))
    return jax.tree.map(jnp.asarray, stack_rows(made))


@pytest.fixture
def batch() -> Batch:
    """A row of two documents and padding, one of a single document, one of padding alone."""
    return _batch((5, 4), (12,), ())


@pytest.fixture
def rows(batch):
    """Four rows: two documents and padding, one document, and both once more in another order of tokens."""
    both = jax.tree.map(lambda leaf: leaf[:2], batch)
    other = both.replace(tokens=jnp.where(both.segment_ids > 0, (3 * both.tokens + 1) % 30, 0))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), both, other)


@pytest.fixture
def whole(batch: Batch) -> Batch:
    """The second row three times: no padding."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf[1]] * 3), batch)


@pytest.fixture
def spoiled():
    """The same text with other tokens where there is padding."""

    def change(batch: Batch) -> Batch:
        return batch.replace(tokens=jnp.where(batch.segment_ids == 0, 17, batch.tokens))

    return change


@pytest.fixture
def unpacked():
    """Each document of a batch as a row of its own."""

    def cut(batch: Batch) -> Batch:
        rows = []
        for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
            for number in range(1, int(segments.max()) + 1):
                mine = np.asarray(tokens)[np.asarray(segments) == number]
                padded = np.pad(mine, (0, len(tokens) - len(mine)))
                alone = (np.arange(len(tokens)) < len(mine)).astype(np.int32)
                rows.append(make_row(padded.astype(np.int32), alone))
        return jax.tree.map(jnp.asarray, stack_rows(rows))

    return cut


@pytest.fixture
def work_with(teacher: Model, mixers: Any, stage_one: Any, tmp_path: pathlib.Path):
    """`work_with(batches, softmax_layers, devices, mesh_config, ...)`: what a stage works with, all text given; every
    fit is solved.
    """

    def make(
        batches: list[Batch],
        softmax_layers: tuple[int, ...] = (1,),
        devices: int = 1,
        mesh_config: MeshConfig | None = None,
        recurrent: MixerOptions = AS_PUBLISHED,
        softmax: MixerOptions = AS_PUBLISHED,
        **fields: Any,
    ) -> Work:
        mesh = make_mesh(mesh_config or MeshConfig(), jax.devices()[:devices])
        plan = hypenet(teacher.config, softmax_layers, recurrent=recurrent, softmax=softmax)
        models = Models(
            teacher=teacher.decoder,
            student=teacher.decoder.clone(config=plan),
            mixer="lightning",
            recurrent=recurrent,
        )
        shardings = abstract_params(teacher.decoder).shardings(mesh)
        made = mixers if recurrent == AS_PUBLISHED else stage_one(models.aligned_spec)
        aligned = jax.device_put({"mixers": made}, models.aligned_mixers().shardings(mesh))
        placed = [place_batch(jax.tree.map(np.asarray, batch), mesh) for batch in batches]
        lent = {
            "models": models,
            "weights": Weights(teacher=jax.device_put(teacher.params, shardings), parent=aligned),
            "mesh": mesh,
            "folder": tmp_path,
            "batches": lambda count: placed[:count],
            "train": lambda start=None, first_batch=0: pytest.fail("it trains nothing"),
            "fit": lambda number, count, kernel, solve: solve()[0],
            "heldout": lambda rows: placed,
            "measure": lambda *model: pytest.fail("it measures nothing"),
            "keep": lambda model, measure: measure(),
        }
        return Work(**{**lent, **fields})

    return make


@pytest.fixture(scope="session")
def compiled():
    """`compiled(stage)`: (student, frozen, batch) -> ((loss, metrics), gradients for student and frozen)."""

    @functools.cache
    def of(stage):
        def mean(student, frozen, batch):
            loss, metrics = stage.loss(student, frozen, batch)
            return loss.value(), (loss, metrics)

        def run(student, frozen, batch):
            wanted = (0,) if frozen is None else (0, 1)
            gradients, found = jax.grad(mean, wanted, has_aux=True)(student, frozen, batch)
            return found, gradients

        return jax.jit(run)

    return of
