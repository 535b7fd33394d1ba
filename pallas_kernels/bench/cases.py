"""Every op that can be timed: its name, and the function that gives its cases here."""

from collections.abc import Callable

from pallas_kernels.bench import attention, decode, lightning, losses
from pallas_kernels.bench.measure import Case

CASES: dict[str, Callable[[], list[Case]]] = {
    "lightning_attention": lightning.cases,
    "attention": attention.cases,
    "decode_attention": decode.cases,
    "linear_cross_entropy": losses.cross_entropy_cases,
    "linear_kl": losses.kl_cases,
    "cpu_bars": lightning.cpu_bars,
}
ON_DEMAND = ("cpu_bars",)  # left out where no op is named
