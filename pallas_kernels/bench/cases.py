"""Every op that can be timed: its name, and the function that gives its cases here; and the shapes
at which a CPU has to be so fast."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from pallas_kernels.bench import attention, decode, lightning, losses, projections, rotary
from pallas_kernels.bench.measure import Case

CASES: dict[str, Callable[[], list[Case]]] = {
    "lightning_attention": lightning.cases,
    "norm_rotary": rotary.cases,
    "attention": attention.cases,
    "decode_attention": decode.cases,
    "projection": projections.cases,
    "linear_cross_entropy": losses.cross_entropy_cases,
    "linear_kl": losses.kl_cases,
    "linear_kl_top_k": losses.kl_top_k_cases,
}
BARS: dict[str, Callable[[], list[Case]]] = {
    "lightning_attention": lightning.cpu_bar,
    "linear_cross_entropy": losses.cross_entropy_cpu_bar,
    "linear_kl": losses.kl_cpu_bar,
}


class NoCaseError(ValueError):
    """Something was asked for that no case has, and what there is."""


def chosen(
    cases: Sequence[Case],
    *,
    shape: str = "",
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    implementations: Sequence[str] = (),
) -> list[Case]:
    """The cases whose shape has that text, cut down to the names given; no names are all of them.

    Raises:
      NoCaseError: no case has that text, one of the names, or all that is asked for at once.
    """
    there = [case for case in cases if shape in case.shape]
    if not there:
        raise NoCaseError(f"no shape has {shape!r}; {_listed(case.shape for case in cases)}")
    _check("dtype", dtypes, [case.dtype for case in there])
    _check("mode", modes, [mode.name for case in there for mode in case.modes])
    _check("implementation", implementations, [x for case in there for x in case.implementations])
    cut = [
        dataclasses.replace(
            case,
            modes=tuple(x for x in case.modes if not modes or x.name in modes),
            implementations=tuple(
                x for x in case.implementations if not implementations or x in implementations
            ),
        )
        for case in there
        if not dtypes or case.dtype in dtypes
    ]
    kept = [case for case in cut if case.modes and case.implementations]
    if not kept:
        raise NoCaseError("no case has all that was asked for at once")
    return kept


def _check(what: str, names: Sequence[str], there: list[str]) -> None:
    for name in names:
        if name not in there:
            raise NoCaseError(f"no {what} is {name!r}; {_listed(there)}")


def _listed(names: Iterable[str]) -> str:
    return f"there are {', '.join(dict.fromkeys(names))}"
