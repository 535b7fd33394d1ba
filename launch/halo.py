"""The whole conversion, stage after stage; killed anywhere, the same command goes on.

    python -m launch.halo CONFIG [--only STAGE] [--from STAGE] [arguments of the config]
                          [--distill.training.optimizer.peak-lr 3e-4 ...]

A stage's name and then its fields sets these; `--evaluation.` those of the evaluation. On several hosts the same
command runs on each; where they cannot be detected, add --coordinator HOST:PORT --num-processes N --process-id I.

Exit codes: 0 done, 2 bad config, 4 numbers not finite, 5 bad data or checkpoint, 6 a bound of the report does not hold,
42 stopped by SIGTERM with everything saved.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from hypenet_jax import runtime
from hypenet_jax.config import HaloConfig
from hypenet_jax.config_file import parse, resolved
from hypenet_jax.convert import convert
from hypenet_jax.convert.lock import sole_use
from launch.errors import CODES

BOUND_MISSED = 6


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of the command."""

    only: str | None = None
    """Run this stage alone; "evaluation" is the last one."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Skip the stages before this one."""


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    with runtime.main_guard(CODES):
        words = (arguments, HaloConfig, Options, runtime.Cluster)
        config, options, cluster = parse(*words, usage=__doc__)
        runtime.join_processes(cluster)
        runtime.set_up_logging()
        agreed = {"config": resolved(config), "options": resolved(options)}
        runtime.check_agreement(config=agreed, code=runtime.code_version())
        with runtime.stop_on_sigterm() as stop, sole_use(config.run_dir):
            held = convert(config, only=options.only, start=options.start, stop=stop)
        return runtime.FINISHED if held else BOUND_MISSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
