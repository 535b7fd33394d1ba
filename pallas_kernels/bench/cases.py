"""Every op that can be timed: its name, and the function that gives its cases here; and the shapes
at which a CPU has to be so fast."""

from collections.abc import Callable

from pallas_kernels.bench import attention, decode, lightning, losses, rotary
from pallas_kernels.bench.measure import Case

CASES: dict[str, Callable[[], list[Case]]] = {
    "lightning_attention": lightning.cases,
    "norm_rotary": rotary.cases,
    "attention": attention.cases,
    "decode_attention": decode.cases,
    "linear_cross_entropy": losses.cross_entropy_cases,
    "linear_kl": losses.kl_cases,
    "linear_kl_top_k": losses.kl_top_k_cases,
}
BARS: dict[str, Callable[[], list[Case]]] = {
    "lightning_attention": lightning.cpu_bar,
    "linear_cross_entropy": losses.cross_entropy_cpu_bar,
    "linear_kl": losses.kl_cpu_bar,
}
