"""Times every implementation of an op on this machine:  python -m pallas_kernels.bench [OP]
[--shape TEXT] [--dtypes D ...] [--modes M ...] [--implementations I ...] [--against fla]
[--cpu-bars] [--json FILE]

Beside each time stand its error against float64 (on inputs of the same shape but at most 1,024
tokens), its ratio to the first implementation of the same lines, and its ratio to the roofline: the time
in which this machine copies the bytes that must be moved, or does the products, both measured in
the same call. Rounds are interleaved, one sample of each implementation after the other. A mode's table
is printed, and the JSON file written anew, as soon as the mode is measured.

--against fla adds chunk_simple_gla of flash-linear-attention, which runs in a process of its own
with PyTorch and Triton; --fla-python names the interpreter that has them, where it is not this one.
`fla_upcast` is the same on bfloat16 tokens that are cast to float32, as HALO's own code calls it.

--cpu-bars times forward and gradient at the shapes for which a CPU has bars: the token scan takes at
least 8 times as long as the chunks of lightning attention, and its tree at most twice; the defining
losses at least as long as theirs, and 5 times the scratch memory (10 GB).
"""

import argparse
import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import NoReturn

from pallas_kernels.bench import against_fla, report
from pallas_kernels.bench.cases import BARS, CASES, NoCaseError, chosen
from pallas_kernels.bench.measure import Case, measure, measure_machine

logger = logging.getLogger("pallas_kernels.bench")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    options = _parse(arguments)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    # Another process measures on the same device: take only the memory that is used.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        cases = _cases(options)
        with contextlib.ExitStack() as stack:
            _run(options, cases, _rivals(options, cases, stack))
    except against_fla.CannotRunError as error:
        _refuse(f"fla cannot run here: {error}")
    except NoCaseError as error:
        _refuse(f"nothing to time: {error}")


def _rivals(
    options: argparse.Namespace, cases: list[Case], stack: contextlib.ExitStack
) -> dict[str, against_fla.Fla]:
    """fla as it comes, and where tokens are narrower than float32 as HALO's own code calls it."""
    upcasts = {"fla": False} if options.against else {}
    if options.against and any(case.dtype == "bfloat16" for case in cases):
        upcasts["fla_upcast"] = True
    return {
        name: stack.enter_context(against_fla.started(options.fla_python, upcast=upcast))
        for name, upcast in upcasts.items()
    }


def _run(
    options: argparse.Namespace, cases: list[Case], fla: Mapping[str, against_fla.Fla]
) -> None:
    machine = measure_machine(options.rounds)
    rows = []
    for case in cases:
        rivals = fla if case.op == against_fla.OP else {}
        if case.dtype == "float32":
            rivals = {name: rival for name, rival in rivals.items() if name == "fla"}
        for made in measure(case, machine, options.rounds, rivals):
            logger.info(report.table(made))
            rows += made
            if options.json:
                versions = fla["fla"].versions if fla else {}
                options.json.write_text(report.as_json(rows, machine, versions))
    logger.info("%s\n%s", report.heading(machine), report.table(rows))


def _cases(options: argparse.Namespace) -> list[Case]:
    by_op = BARS if options.cpu_bars else CASES
    return chosen(
        [case for op in ([options.op] if options.op else by_op) for case in by_op[op]()],
        shape=options.shape,
        dtypes=options.dtypes,
        modes=options.modes,
        implementations=options.implementations,
    )


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2) from None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bench", description=__doc__)
    parser.add_argument("op", nargs="?", choices=sorted(CASES), help="all ops where it is left out")
    parser.add_argument("--shape", default="", help="only shapes with this text, such as T16384")
    for name, example in (
        ("dtypes", "bfloat16"),
        ("modes", "forward forward+gradient"),
        ("implementations", "gpu chunked"),
    ):
        only = f"only these {name}, such as {example}"
        parser.add_argument(f"--{name}", nargs="+", default=[], help=only)
    parser.add_argument("--cpu-bars", action="store_true", help=f"of {', '.join(BARS)}")
    parser.add_argument("--against", choices=["fla"], help=f"with {against_fla.OP}, or all ops")
    parser.add_argument("--fla-python", default=sys.executable, help="default: this interpreter")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--rounds", type=int, help="default: 7, or fewer of slow ones")
    options = parser.parse_args(arguments)
    if options.against and options.op not in (None, against_fla.OP):
        parser.error(f"--against fla times {against_fla.OP}, not {options.op}")
    if options.cpu_bars and options.op not in (None, *BARS):
        parser.error(f"--cpu-bars times {', '.join(BARS)}, not {options.op}")
    return options


if __name__ == "__main__":
    main()
