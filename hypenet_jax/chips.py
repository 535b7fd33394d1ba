"""The one list of accelerators: peak rates by their makers' data sheets, and what a program may use of each."""

import dataclasses

GIB = 2**30
TPU_HOST = (2, 2)  # chips of one host along the first axes of a slice; 1 along further axes


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device at its peak; what is computed from these rates is the least time that something can take.

    Attributes:
      platform: "tpu" or "gpu", as JAX names it.
      bandwidth: of its memory, bytes per second.
      flops: dense bfloat16 operations per second.
      memory: bytes that a program may take, less than the chip has; None where `plan` cannot compile for it.
      links: bytes per second that it sends to devices of its own slice or node, over all links together.
      network: the same to devices of other nodes.
    """

    name: str
    platform: str
    bandwidth: float
    flops: float
    memory: float | None = None
    links: float = 0.0
    network: float = 0.0


def _tpu(
    name: str, bandwidth: float, flops: float, gib: float | None = None, link_bits: float = 0.0
) -> Chip:
    memory, links = None if gib is None else gib * GIB, link_bits / 8
    return Chip(
        name, "tpu", bandwidth, flops, memory, links, network=links
    )  # there is only the one


def _gpu(name: str, bandwidth: float, flops: float, memory: int | None = None) -> Chip:
    """JAX takes three quarters of a GPU's memory unless it is told otherwise, and nothing goes beyond that.

    Links are Hopper's NVLink, network one 400 Gb/s adapter per GPU.
    """
    usable = None if memory is None else 0.75 * memory
    return Chip(name, "gpu", bandwidth, flops, usable, links=450e9, network=50e9)


# Rates and links: cloud.google.com/tpu/docs; NVIDIA's data sheets, SXM, without sparsity. Memory: of TPUs what the
# compiler itself refuses to exceed, of GPUs what the driver reports.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 1.228e12, 275e12),
        _tpu("v5e", 0.819e12, 197e12, 15.75, 1600e9),
        _tpu("v5p", 2.765e12, 459e12, 95.74, 4800e9),
        _tpu("v6e", 1.640e12, 918e12, 31.25, 3584e9),
        _tpu("tpu7x", 7.380e12, 2307e12),
        _gpu("a100", 2.039e12, 312e12),
        _gpu("h100", 3.35e12, 989e12, 84_942_979_072),
        _gpu("h200", 4.8e12, 989e12, 151_397_597_184),
        _gpu("b200", 8.0e12, 2250e12),
    )
}
