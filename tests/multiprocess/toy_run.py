"""The toy of tests/train trained by several processes: python toy_run.py FOLDER STEPS EVERY, with a cluster's flags.

Saves every EVERY steps. Leaves found-STEP.npz, the state it restored, and left-STEP.npz, the one it ended with.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from train_toy import AXES, OPTIMIZER, Stream, init, run, trainable

from hypenet_jax import runtime
from hypenet_jax.data.batch import Batch
from hypenet_jax.sharding import MeshConfig, make_mesh, row_parts, shardings_of
from hypenet_jax.train.checkpoint import Checkpoints, Provenance
from hypenet_jax.train.state import TrainState, create_state


@dataclasses.dataclass
class Share(Stream):
    """This process's rows of every batch."""

    part: int = 0
    parts: int = 1

    def __next__(self) -> Batch:
        rows = 8 // self.parts
        here = slice(rows * self.part, rows * (self.part + 1))
        return jax.tree.map(lambda leaf: leaf[here], super().__next__())


def write(folder: pathlib.Path, name: str, state: TrainState) -> None:
    whole = multihost_utils.process_allgather(state, tiled=True)
    if jax.process_index() == 0:
        np.savez(folder / f"{name}-{int(whole.step)}.npz", *jax.tree.leaves(whole))


def main(folder: pathlib.Path, steps: int, every: int) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))

    def start() -> TrainState:
        return create_state(params, trainable, OPTIMIZER, shardings_of(params, AXES, mesh))

    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", Provenance("toy", {"width": 8}))
    found = checkpoints.restore(start())
    checkpoints.close()
    if found is not None:
        write(folder, "found", found[0])
    part, parts = row_parts(mesh)
    options = {"batches": Share(part=part, parts=parts), "checkpoint_every": every}
    left = run(folder, steps, state=start(), mesh=mesh, evaluate=None, **options)
    write(folder, "left", left)


if __name__ == "__main__":
    with runtime.main_guard({}):
        cluster, (where, last, every) = tyro.cli(
            runtime.Cluster, args=sys.argv[1:], return_unknown_args=True
        )
        runtime.join_processes(cluster)
        main(pathlib.Path(where), int(last), int(every))
