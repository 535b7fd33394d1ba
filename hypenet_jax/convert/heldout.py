"""A stage's own loss on held-out text, for the loop to record while it trains."""

import itertools
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from hypenet_jax.axes import Params
from hypenet_jax.data.batch import Batch
from hypenet_jax.data.config import DataConfig
from hypenet_jax.data.loader import heldout_batches
from hypenet_jax.data.prepared import Prepared
from hypenet_jax.sharding import place_batch, row_parts
from hypenet_jax.train.stage import Stage

MOST_BATCHES = 16  # at the batch of training: enough to tell its own trend from noise


def heldout_loss(
    stage: Stage, frozen: Params | None, data: DataConfig, prepared: Prepared, mesh: Mesh
) -> Callable[[Params], dict[str, float]]:
    """Student parameters -> "loss" and the stage's other means over the same first held-out rows.

    Means are over all tokens of at most MOST_BATCHES batches: their sums and weights are added up, then divided once.

    Raises:
      ValueError: no document of the text is held out.
    """
    if prepared.num_tokens("heldout") == 0:
        raise ValueError(
            f"{prepared.folder} holds out no document, so nothing can be evaluated: prepare it with a "
            "larger heldout_fraction, or set evaluate_every to None"
        )
    host, hosts = row_parts(mesh)

    @jax.jit
    def sums(params: Params, frozen: Params | None, batch: Batch):
        loss, means = stage.loss(params, frozen, batch)
        return {"loss": loss, **means}

    def evaluate(params: Params) -> dict[str, float]:
        parts = [
            sums(
                params,
                frozen,
                place_batch(jax.tree.map(lambda rows: rows[host::hosts], batch), mesh),
            )
            for batch in itertools.islice(_batches(data, prepared), MOST_BATCHES)
        ]
        means = jax.tree.map(lambda *part: sum(part), *parts)
        return {name: float(mean.value()) for name, mean in means.items()}

    return evaluate


def _batches(data: DataConfig, prepared: Prepared) -> Iterator[Batch]:
    return heldout_batches(
        prepared,
        data.context_length,
        data.sequences_per_step,
        reset_documents=data.reset_documents,
    )
