"""A stage small enough to compile in an instant: a bigram model over 16 tokens, one of its leaves
held still.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hypenet_jax.data.batch import Batch
from hypenet_jax.train.checkpoint import Checkpoints, Provenance
from hypenet_jax.train.loop import LoopConfig, fit
from hypenet_jax.train.metrics import Metrics, MetricsFile
from hypenet_jax.train.optimizer import Optimizer, OptimizerConfig
from hypenet_jax.train.stage import Mean, Stage
from hypenet_jax.train.state import TrainState, create_state
from hypenet_jax.train.step import Step, make_train_step

VOCAB, WIDTH = 16, 8
OPTIMIZER = Optimizer(OptimizerConfig(peak_lr=0.05, final_lr=0.01, warmup_steps=2, steps=20))
AXES = {
    "embed": {"embedding": ("vocab", "embed")},
    "held": {"kernel": ("embed", None)},
    "norm": {"scale": ("norm",)},
    "head": {"kernel": ("vocab", "embed")},
}


def init(key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 3)
    return {
        "embed": {"embedding": jax.random.normal(keys[0], (VOCAB, WIDTH))},
        "held": {"kernel": jax.random.normal(keys[1], (WIDTH, WIDTH)) / 3},
        "norm": {"scale": jnp.ones((WIDTH,))},
        "head": {"kernel": jax.random.normal(keys[2], (VOCAB, WIDTH)) / 3},
    }


def loss(student: Any, frozen: Any, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    x = student["embed"]["embedding"][batch.tokens] @ student["held"]["kernel"]
    x = jnp.tanh(x) * student["norm"]["scale"][None, None]
    logits = jnp.einsum("btd,vd->btv", x, student["head"]["kernel"])[:, :-1]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], -1)[..., 0]
    weight = batch.loss_weight[:, 1:]
    right = (jnp.argmax(logits, -1) == batch.tokens[:, 1:]).astype(jnp.float32)
    total = jnp.sum(weight)
    return Mean(-jnp.sum(picked * weight), total), {
        "accuracy": Mean(jnp.sum(right * weight), total)
    }


def trainable(path: tuple[str, ...]) -> bool:
    return path[0] != "held"


STAGE = Stage("toy", loss, trainable)


def make_batch(seed: int, rows: int = 8, time: int = 12) -> Batch:
    """Rows with padding of different lengths, so that micro-batches weigh differently."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCAB, (rows, time), dtype=np.int32)
    real = np.arange(time) < rng.integers(3, time + 1, (rows, 1))
    weight = (real & (np.arange(time) > 0)).astype(np.float32)
    positions = np.where(real, np.arange(time), 0).astype(np.int32)
    return Batch(
        tokens=tokens * real,
        segment_ids=real.astype(np.int32),
        positions=positions,
        loss_weight=weight,
    )


@dataclasses.dataclass
class Stream:
    """Batch number `position`; those in `poisoned` have a loss that is not a number."""

    position: int = 0
    poisoned: tuple[int, ...] = ()

    def __next__(self) -> Batch:
        batch = make_batch(self.position)
        if self.position in self.poisoned:
            batch = batch.replace(loss_weight=batch.loss_weight * np.float32(np.nan))
        self.position += 1
        return batch


def new_state() -> TrainState:
    return jax.tree.map(jnp.array, _first_state())


@functools.cache
def _first_state() -> TrainState:
    return create_state(init(jax.random.key(0)), trainable, OPTIMIZER)


@functools.cache
def step_of(accumulate: int) -> Step:
    """Compiled once for all tests."""
    return make_train_step(STAGE, OPTIMIZER, accumulate=accumulate)


def run(folder: pathlib.Path, steps: int = 12, stage: Stage = STAGE, **options: Any) -> TrainState:
    """One call of a training command, the same every time: goes on from what is in the folder."""
    loop = LoopConfig(
        steps=steps,
        accumulate=2,
        checkpoint_every=options.pop("checkpoint_every", 4),
        evaluate_every=3,
        max_skips=3,
        roll_back_to=options.pop("roll_back_to", None),
    )
    batches = options.pop("batches", None) or Stream()
    config = options.pop("config", {"width": WIDTH})
    checkpoints = Checkpoints(folder / "checkpoints", Provenance(stage.name, config))
    metrics = Metrics(MetricsFile(folder / "metrics.jsonl"))
    try:
        return fit(
            stage,
            options.pop("optimizer", OPTIMIZER),
            options.pop("state", None) or new_state(),
            None,
            batches,
            loop,
            checkpoints=checkpoints,
            metrics=metrics,
            **{
                "evaluate": lambda params: {"norm": float(jnp.sum(params["norm"]["scale"]))},
                **options,
            },
        )
    finally:
        metrics.close()
        checkpoints.close()


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
