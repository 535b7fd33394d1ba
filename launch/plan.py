"""What a stage needs and how long it takes at least, before anything is rented.

    python -m launch.plan CONFIG [--topology v5p:2x4x4 | --devices 8] [arguments of the config]

Compiles the program that would run; a CPU is enough. TPUs (v5e:4x4, v5p:2x4x4, v6e:4x4) need the extra `tpu`,
NVIDIA nodes (h100:8, h200:4x8) the extra `cuda`; --devices takes virtual CPU devices; without either, those of here.

Exit codes: 0 it fits, 2 bad config or topology, 3 it does not fit.
"""

import dataclasses
import os
import sys

import jax

from hypenet_jax import runtime
from hypenet_jax.config import StageConfig
from hypenet_jax.config_file import parse
from hypenet_jax.plan import DoesNotFit, ServeConfig, here, nearest, plan, report
from hypenet_jax.plan import parse as parse_topology
from launch.errors import CODES
from pallas_kernels.compile import ENVIRONMENT


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of the command."""

    topology: str | None = None
    """TPU slice or GPU nodes, such as v5p:2x4x4 or h200:4x8."""
    devices: int | None = None
    """So many virtual CPU devices instead."""


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    with runtime.main_guard(CODES):
        config, options = parse(arguments, (StageConfig, ServeConfig), Options, usage=__doc__)
        if options.topology or options.devices:
            _without_accelerator(options.devices)
        runtime.set_up_logging()
        topology = parse_topology(options.topology) if options.topology else here(options.devices)
        try:
            print(report(plan(config, topology)))
        except DoesNotFit as error:
            print(f"{config.name} on {topology.name} does not fit: {error}", flush=True)
            change = nearest(config, topology)
            print("fits with " + " ".join(change.words) if change else "nothing tried makes it fit")
            return runtime.DOES_NOT_FIT
    return runtime.FINISHED


def _without_accelerator(devices: int | None) -> None:
    """Before any other use of JAX: the CPU alone runs, libtpu misses no TPU, and the plugin for GPUs no driver."""
    for name, value in {**ENVIRONMENT, "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
