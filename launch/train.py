"""One stage; killed anywhere, the same command goes on.

python -m launch.train CONFIG [arguments of the config] [--training.loop.steps 100 ...]

On several hosts the same command runs on each; where they cannot be detected, add
--coordinator HOST:PORT --num-processes N --process-id I.
"""

import sys

from hypenet_jax import runtime
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import parse, resolved
from hypenet_jax.convert import run_stage
from hypenet_jax.convert.lock import sole_use
from launch.errors import CODES


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    with runtime.main_guard(CODES):
        config, cluster = parse(arguments, StageConfig, runtime.Cluster, usage=__doc__)
        runtime.join_processes(cluster)
        runtime.set_up_logging()
        runtime.check_agreement(config=resolved(config), code=runtime.code_version())
        with runtime.stop_on_sigterm() as stop, sole_use(config.run_dir):
            run_stage(config, stop=stop)
    return runtime.FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
