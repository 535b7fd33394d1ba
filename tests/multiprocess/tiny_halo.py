"""The tiny chain of tests/convert as a config file.

python -m launch.halo tests/multiprocess/tiny_halo.py --text FOLDER --run-dir FOLDER, with tests/convert on PYTHONPATH
"""

import dataclasses
import pathlib

from tiny_chain import CATALOGUE, chain

from hypenet_jax.config import HaloConfig
from hypenet_jax.evals.checks import Bound, Candidate, EvaluateConfig

EVALUATE = EvaluateConfig(
    candidates=(
        Candidate("teacher", None, (16,), reads=True, races=True),
        Candidate("student", "finetune", (16, 32), reads=True, races=True),
    ),
    student="student",
    catalogue=CATALOGUE,
    needles=2,
    sequences=8,
    long_sequences=8,
    long_length=32,
    read_lengths=(32,),
    read_windows=8,
    read_targets=8,
    race_lengths=(64,),
    heldout_rows=16,
    bounds=(Bound("heldout_top1", "student", at_least=0.0),),
    prompts=("the a of file",),
    sample_tokens=4,
)


def config(text: str, run_dir: str, teacher_steps: int = 3) -> HaloConfig:
    whole = chain(pathlib.Path(text), pathlib.Path(run_dir))
    teacher, *others = whole.stages
    assert teacher.training is not None
    loop = dataclasses.replace(teacher.training.loop, steps=teacher_steps, checkpoint_every=1000)
    training = dataclasses.replace(teacher.training, loop=loop)
    runs = (dataclasses.replace(teacher, training=training), *others)
    return HaloConfig(run_dir=run_dir, stages=runs, evaluation=EVALUATE)
