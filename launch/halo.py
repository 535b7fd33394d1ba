"""The whole conversion, stage after stage; killed anywhere, the same command goes on.

    python -m launch.halo CONFIG [--only STAGE] [--from STAGE] [arguments of the config]

On several hosts the same command runs on each; where they cannot be detected, add
--coordinator HOST:PORT --num-processes N --process-id I.

Exit codes: 0 done, 2 bad config, 4 numbers not finite, 5 bad data or checkpoint, 6 a bound of the report does not hold,
42 stopped by SIGTERM with everything saved.
"""

import sys

from hypenet_jax import runtime
from hypenet_jax.config import HaloConfig
from hypenet_jax.config_file import load, resolved
from hypenet_jax.convert import convert
from hypenet_jax.convert.lock import sole_use
from launch.errors import CODES

BOUND_MISSED = 6


def main(arguments: list[str]) -> int:
    with runtime.main_guard(CODES):
        cluster, words = runtime.take_cluster(arguments)
        path, options, rest = _parse(words)
        config = load(path, HaloConfig, rest)
        runtime.join_processes(cluster)
        runtime.set_up_logging()
        asked = {"config": resolved(config), **options}
        runtime.check_agreement(config=asked, code=runtime.code_version())
        with runtime.stop_on_sigterm() as stop, sole_use(config.run_dir):
            held = convert(config, only=options["only"], start=options["from"], stop=stop)
        return runtime.FINISHED if held else BOUND_MISSED


def _parse(arguments: list[str]) -> tuple[str, dict[str, str | None], list[str]]:
    """The config file, our own two options, and what belongs to the config."""
    options: dict[str, str | None] = {"only": None, "from": None}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in options:
            options[name] = value or next(words, None)
        else:
            rest.append(word)
    if not rest or rest[0].startswith("-"):
        print(__doc__)
        raise SystemExit(0 if "--help" in arguments else runtime.BAD_CONFIG)
    return rest[0], options, rest[1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
