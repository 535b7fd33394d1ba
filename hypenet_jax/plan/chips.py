"""Devices that can be rented: how much memory a program may take there, and the makers' peak rates."""

import dataclasses

from hypenet_jax.chips import RATES

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. What is computed from these rates is the least time that something can take.

    Attributes:
      platform: as JAX names it.
      memory: bytes that a program may take, which is less than what the chip has.
      links: bytes per second that it sends to devices of its own slice or node, over all links together.
      network: the same to devices of other nodes.
    """

    name: str
    platform: str
    memory: float
    links: float
    network: float

    @property
    def flops(self) -> float:
        return RATES[self.name].flops

    @property
    def bandwidth(self) -> float:
        return RATES[self.name].bandwidth


def _tpu(name: str, gib: float, bits: float) -> Chip:
    # Within a slice there is only the one network.
    return Chip(name, "tpu", gib * GIB, bits / 8, bits / 8)


def _hopper(name: str, memory: int) -> Chip:
    """JAX takes three quarters of a GPU's memory unless it is told otherwise, and nothing goes beyond that.

    Links are NVLink, network one 400 Gb/s adapter per GPU.
    """
    return Chip(name, "gpu", 0.75 * memory, 450e9, 50e9)


# Links of TPUs: cloud.google.com/tpu/docs; their memory: what the compiler itself refuses to exceed. Of GPUs: what the
# driver reports.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 15.75, 1600e9),
        _tpu("v5p", 95.74, 4800e9),
        _tpu("v6e", 31.25, 3584e9),
        _hopper("h100", 84_942_979_072),
        _hopper("h200", 151_397_597_184),
    )
}
