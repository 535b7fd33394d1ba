"""Every op that can be timed, and which cases of them a command line asks for."""

import dataclasses
from collections.abc import Iterable

import tyro

from pallas_kernels.bench import attention, delta, lightning, losses, projections, rotary
from pallas_kernels.bench.op import Case

OPS = (
    lightning.WHOLE_ROWS,
    lightning.PART_OF_A_ROW,
    delta.BY_HEAD,
    delta.BY_CHANNEL,
    rotary.NORM_ROTARY,
    attention.ATTENTION,
    attention.DECODE_ATTENTION,
    projections.PROJECTION,
    losses.CROSS_ENTROPY_LOSS,
    losses.KL_LOSS,
    losses.KL_TOP_K_LOSS,
    losses.DISTILLATION_LOSS,
)


class NoCaseError(ValueError):
    """Something was asked for that no case has, and what there is."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which cases to time; what is left out is all there is."""

    op: tyro.conf.Positional[str | None] = None
    """Only this op, such as lightning_attention; an unknown one is answered with those there are."""
    shape: str = ""
    """Only shapes with this text, such as T16384."""
    dtypes: tuple[str, ...] = ()
    """Only these, such as bfloat16."""
    modes: tuple[str, ...] = ()
    """Only these, such as forward forward+gradient."""
    implementations: tuple[str, ...] = ()
    """Only these, such as gpu chunked."""
    cpu_bars: tyro.conf.FlagCreatePairsOff[bool] = False
    """The shapes for which a CPU has bars."""

    def cases(self) -> list[Case]:
        """Those cases, with the modes and implementations that were asked for.

        Raises:
          NoCaseError: no case has that op, text, one of the names, or all that is asked for at once.
        """
        every = [case for op in OPS for case in (op.bars() if self.cpu_bars else op.cases())]
        _check("op", [self.op] if self.op else [], [case.op.name for case in every])
        of_op = [case for case in every if self.op in (None, case.op.name)]
        there = [case for case in of_op if self.shape in case.label]
        if not there:
            raise NoCaseError(f"no shape has {self.shape!r}; {_listed(c.label for c in of_op)}")
        _check("dtype", self.dtypes, [case.dtype for case in there])
        _check("mode", self.modes, [mode.name for case in there for mode in case.modes])
        names = [name for case in there for name in case.implementations]
        _check("implementation", self.implementations, names)
        kept = []
        for case in there:
            modes = tuple(x for x in case.modes if not self.modes or x.name in self.modes)
            names = tuple(
                x
                for x in case.implementations
                if not self.implementations or x in self.implementations
            )
            if modes and names and (not self.dtypes or case.dtype in self.dtypes):
                kept.append(dataclasses.replace(case, modes=modes, implementations=names))
        if not kept:
            raise NoCaseError("no case has all that was asked for at once")
        return kept


def _check(what: str, asked: Iterable[str], there: list[str]) -> None:
    for name in asked:
        if name not in there:
            raise NoCaseError(f"no {what} is {name!r}; {_listed(there)}")


def _listed(names: Iterable[str]) -> str:
    return f"there are {', '.join(dict.fromkeys(names))}"
