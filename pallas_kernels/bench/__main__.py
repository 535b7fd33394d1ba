"""Times every implementation of an op on this machine.

Beside each time stand its error against float64 (on inputs of the same shape but at most 1,024
tokens), its ratio to the first implementation of the same lines, and its ratio to the roofline: the time
in which this machine copies the bytes that must be moved, or does the products, both measured in
the same call. Rounds are interleaved, one sample of each implementation after the other. A mode's table
is printed, and the JSON file written anew, as soon as the mode is measured.

--against fla adds chunk_simple_gla of flash-linear-attention, which runs in a process of its own
with PyTorch and Triton. `fla_upcast` is the same on bfloat16 tokens that are cast to float32, as HALO's
own code calls it.

--cpu-bars times forward and gradient at the shapes for which a CPU has bars: the token scan takes at
least 8 times as long as the chunks of lightning attention, and its tree at most twice; the chunks of
the gated delta rule take at most twice as long; the defining losses at least as long as theirs, and 5
times the scratch memory (10 GB).
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

import tyro

from pallas_kernels.bench import against_fla, report
from pallas_kernels.bench.cases import Choice, NoCaseError
from pallas_kernels.bench.measure import measure, measure_machine

PROGRAM = "python -m pallas_kernels.bench"
logger = logging.getLogger("pallas_kernels.bench")


@dataclasses.dataclass(frozen=True)
class Arguments(Choice):
    """Arguments of the command."""

    against: Literal["fla"] | None = None
    """Another library, in turns with ours."""
    fla_python: str = sys.executable
    """The interpreter that has PyTorch, Triton and fla."""
    json: pathlib.Path | None = None
    """Also write the rows to this file."""
    rounds: int | None = None
    """None: 7, or fewer of slow implementations."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = tyro.cli(Arguments, prog=PROGRAM, description=__doc__, args=arguments)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    # Another process measures on the same device: take only the memory that is used.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        _run(options)
    except (against_fla.CannotRunError, NoCaseError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _run(options: Arguments) -> None:
    cases, rows = options.cases(), []
    if options.against and options.op not in (None, against_fla.OP):
        raise NoCaseError(f"--against fla times {against_fla.OP}, not {options.op}")
    with contextlib.ExitStack() as stack:
        fla = options.against and stack.enter_context(against_fla.started(options.fla_python))
        machine = measure_machine(options.rounds)
        for case in cases:
            rival = fla.contenders if fla and case.op.name == against_fla.OP else None
            for made in measure(case, machine, options.rounds, rival):
                logger.info(report.table(made))
                rows += made
                if options.json:
                    versions = fla.versions if fla else {}
                    options.json.write_text(report.as_json(rows, machine, versions))
        logger.info("%s\n%s", report.heading(machine), report.table(rows))


if __name__ == "__main__":
    main()
