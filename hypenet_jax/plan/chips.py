"""Devices that can be rented: how much memory a program may take there, and the makers' peak rates."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. What is computed from these rates is the least time that something can take.

    Attributes:
      platform: as JAX names it.
      memory: bytes that a program may take, which is less than what the chip has.
      flops: bfloat16 FLOPs per second.
      bandwidth: bytes per second from and to memory.
      links: bytes per second that it sends to devices of its own slice or node, over all links together.
      network: the same to devices of other nodes.
    """

    name: str
    platform: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    network: float


def _tpu(name: str, gib: float, flops: float, bandwidth: float, bits: float) -> Chip:
    # Within a slice there is only the one network.
    return Chip(name, "tpu", gib * GIB, flops, bandwidth, bits / 8, bits / 8)


def _hopper(name: str, memory: int, bandwidth: float) -> Chip:
    """JAX takes three quarters of a GPU's memory unless it is told otherwise, and nothing goes beyond that.

    Links are NVLink, network one 400 Gb/s adapter per GPU.
    """
    return Chip(name, "gpu", 0.75 * memory, 989e12, bandwidth, 450e9, 50e9)


# TPU rates: cloud.google.com/tpu/docs (v5e, v5p, v6e); their memory: what the compiler itself refuses to exceed.
# GPU rates: NVIDIA's data sheets of the SXM form, without sparsity; their memory: what the driver reports.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 15.75, 197e12, 819e9, 1600e9),
        _tpu("v5p", 95.74, 459e12, 2765e9, 4800e9),
        _tpu("v6e", 31.25, 918e12, 1640e9, 3584e9),
        _hopper("h100", 84_942_979_072, 3.35e12),
        _hopper("h200", 151_397_597_184, 4.8e12),
    )
}
