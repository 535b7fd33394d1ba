"""Descriptions of NVIDIA GPUs that let XLA compile for them without one."""

from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from hypenet_jax.chips import Chip

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


def gpus(chip: Chip, nodes: int, per_node: int) -> Sequence[Any]:
    """GPUs of this many nodes to compile for, one process per node; needs the extra `cuda`."""
    target = TARGET.format(bandwidth=chip.bandwidth, memory=chip.memory, name=chip.name.upper())
    shape = f"1x{nodes}x{per_node}"
    return topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=shape
    ).devices
