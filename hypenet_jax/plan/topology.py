"""Device topologies to compile for: TPU slices and nodes of GPUs that this machine lacks, or its own devices."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from hypenet_jax.chips import CHIPS, TPU_HOST, Chip

# A Hopper GPU in the SXM form; the field names are those of XLA's GpuTargetConfigProto.
# Source: openxla/xla, xla/backends/gpu/target_config/specs (h100_sxm, h200).
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""


class TopologyError(ValueError):
    """No such topology, or no compiler for it; the message says what would work."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind.

    Attributes:
      chip: None for devices of this machine, whose peak rates are not known.
      shape: chips along each axis of a TPU slice; (nodes, GPUs per node); or (devices,) of this machine.
    """

    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def platform(self) -> str:
        """As JAX names it."""
        return jax.default_backend() if self.chip is None else self.chip.platform

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.chip.name if self.chip else self.platform}:{'x'.join(map(str, self.shape))}"

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def devices(self) -> Sequence[Any]:
        """Devices to compile programs for; GPUs need the extra `cuda`, and are one process per node.

        Raises:
          TopologyError: the compiler refuses the topology, or this machine has too few devices.
        """
        if self.chip is None:
            devices = jax.devices()
            if len(devices) < self.count:
                raise TopologyError(
                    f"{self.count} devices do not exist: this machine has {len(devices)}"
                )
            return devices[: self.count]
        what: dict[str, Any] = {"platform": "tpu", "topology_name": self.name}
        if self.platform == "gpu":
            chip = dataclasses.asdict(self.chip) | {"name": self.chip.name.upper()}
            grid = "x".join(map(str, (1, *self.shape)))
            what = {"platform": "cuda", "target_config": TARGET.format(**chip), "topology": grid}
        elif self.count == 1:  # the compiler assumes hosts of four chips unless told otherwise
            what["chips_per_host_bounds"] = (1, 1, 1)
        try:
            return topologies.get_topology_desc(**what).devices
        except Exception as error:
            raise TopologyError(f"{self.name}: {str(error).splitlines()[0]}") from error

    @property
    def compiler(self) -> str:
        """Which compiler the numbers come from."""
        if self.chip is None:
            return "the compiler of this machine's devices"
        if self.platform == "tpu":
            return "the compiler of TPUs, without one"
        return "the compiler of NVIDIA GPUs, without one; it tunes no kernel then"

    def larger(self) -> "Topology":
        """The next larger one: a host after one TPU, else twice a slice's shortest axis, or twice the GPU nodes."""
        place = max(range(len(self.shape)), key=lambda i: (-self.shape[i], i))
        if self.platform == "gpu":
            place = 0
        elif self.count == 1:
            return Topology(self.chip, (*TPU_HOST, *self.shape)[: len(self.shape)])
        return Topology(
            self.chip, tuple(n * 2 if i == place else n for i, n in enumerate(self.shape))
        )

    def node(self, device: Any) -> int:
        """Index of the device's node; a TPU slice counts as one node."""
        return 0 if self.platform == "tpu" else device.process_index


def parse(name: str) -> Topology:
    """The topology of a name: v5p:2x4x4 (chips along each axis), h100:8 (one node), h100:4x8 (four nodes).

    Raises:
      TopologyError: another kind of name.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    known = [chip.name for chip in CHIPS.values() if chip.memory is not None]
    if match is None or match[1] not in known:
        raise TopologyError(
            f"no topology {name!r}; it is CHIP:SHAPE, as v5e:4x4, v5p:2x4x4, h100:8 or h100:4x8, "
            f"and the chips are {', '.join(known)}"
        )
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if chip.platform == "gpu":
        shape = (1, *shape) if len(shape) == 1 else shape
        if len(shape) != 2:
            raise TopologyError(f"{name}: GPUs are NODESxGPUS, or GPUS of one node")
    return Topology(chip, shape)


def here(count: int | None) -> Topology:
    """Devices of this machine; None takes all."""
    return Topology(None, (jax.device_count() if count is None else count,))
