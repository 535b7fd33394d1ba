"""The tiny chain of tests/convert as a config file.

python -m launch.halo tests/multiprocess/tiny_halo.py --text FOLDER --run-dir FOLDER, with tests/convert on PYTHONPATH
"""

import dataclasses
import pathlib

from tiny_chain import chain, evaluation

from hypenet_jax.config import HaloConfig


def config(text: str, run_dir: str, teacher_steps: int = 3) -> HaloConfig:
    whole = chain(pathlib.Path(text), pathlib.Path(run_dir))
    teacher, *others = whole.stages
    assert teacher.training is not None
    loop = dataclasses.replace(teacher.training.loop, steps=teacher_steps, checkpoint_every=1000)
    training = dataclasses.replace(teacher.training, loop=loop)
    runs = (dataclasses.replace(teacher, training=training), *others)
    measured = evaluation(pathlib.Path(run_dir))
    return HaloConfig(run_dir=run_dir, stages=runs, evaluation=measured)
