"""Peak rates of accelerators by their makers' data sheets."""

from typing import NamedTuple


class Rates(NamedTuple):
    """Of one chip.

    Attributes:
      bandwidth: of its memory, bytes per second.
      flops: dense bfloat16 operations per second.
    """

    bandwidth: float
    flops: float


# Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x); NVIDIA's data sheets, SXM, without sparsity.
RATES = {
    "v4": Rates(1.228e12, 275e12),
    "v5e": Rates(0.819e12, 197e12),
    "v5p": Rates(2.765e12, 459e12),
    "v6e": Rates(1.640e12, 918e12),
    "tpu7x": Rates(7.380e12, 2307e12),
    "a100": Rates(2.039e12, 312e12),
    "h100": Rates(3.35e12, 989e12),
    "h200": Rates(4.8e12, 989e12),
    "b200": Rates(8.0e12, 2250e12),
}
