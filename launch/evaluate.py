"""Model folders, measured: perplexity, needles, tasks, speed; a table, JSON lines and a page.

    python -m launch.evaluate MODEL [--teacher FOLDER] [--lengths 4096 8192] [--text FOLDER] [arguments of the config]
    python -m launch.evaluate CONFIG [arguments of the config]

MODEL is a Hugging Face folder of HypeNet or a teacher, or org/name in the local cache of Hugging Face. It is measured
as configs/evals/model.py says; `--help` after it lists all that can be set. On several hosts the same command runs on
each; where they cannot be detected, add --coordinator HOST:PORT --num-processes N --process-id I.

Exit codes: 0 done, 2 bad config, 5 bad data or checkpoint, 6 a required check does not hold, 42 stopped by SIGTERM;
what was measured is kept, and the same command goes on.
"""

import pathlib
import sys

from hypenet_jax import runtime
from hypenet_jax.config_file import parse, resolved
from hypenet_jax.evals.config import EvaluationConfig
from hypenet_jax.evals.runner import evaluate
from launch.errors import CODES

ROOT = pathlib.Path(__file__).parents[1]
OF_A_MODEL = ROOT / "configs/evals/model.py"
CHECK_FAILED = 6


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    with runtime.main_guard(CODES):
        config, cluster = config_of(arguments)
        runtime.join_processes(cluster)
        runtime.set_up_logging()
        runtime.check_agreement(config=resolved(config), code=runtime.code_version())
        with runtime.stop_on_sigterm() as stop:
            passed = evaluate(config, stop=stop).passed
    return runtime.FINISHED if passed else CHECK_FAILED


def config_of(arguments: list[str]) -> tuple[EvaluationConfig, runtime.Cluster]:
    """The config of a command line that begins with a config file or a model folder."""
    model = (str(OF_A_MODEL), "--model")
    return parse(arguments, EvaluationConfig, runtime.Cluster, usage=__doc__, of_a_folder=model)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
