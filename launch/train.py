"""One stage; killed anywhere, the same command goes on.

python -m launch.train CONFIG [arguments of the config] [--training.loop.steps 100 ...]
"""

import sys

from hypenet_jax import runtime
from hypenet_jax.config import RunConfig, load
from hypenet_jax.halo.select import SelectConfig
from hypenet_jax.run import select, train
from launch.errors import CODES


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return runtime.FINISHED if "--help" in arguments else runtime.BAD_CONFIG
    with runtime.main_guard(CODES):
        run = load(arguments[0], RunConfig, arguments[1:])
        runtime.join_processes(runtime.Cluster())
        runtime.set_up_logging()
        if isinstance(run.stage, SelectConfig):
            select(run)
        else:
            with runtime.stop_on_sigterm() as stop:
                train(run, stop=stop)
    return runtime.FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
