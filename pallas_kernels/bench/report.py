"""What was measured, as a table and as JSON."""

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import jax

from pallas_kernels.bench.measure import Machine, Row

HEAD = ("op", "shape", "dtype", "mode", "implementation", "ms", "20-80%", "ratio", "x roofline")
HEAD = (*HEAD, "error", "scratch MB")


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of as many words, one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def table(rows: Sequence[Row]) -> str:
    """One line per row, in columns; the error is the worst of the outputs."""
    return columns([HEAD, *(_cells(row) for row in rows)])


def heading(machine: Machine) -> str:
    """Where this was measured, and what the roofline is made of."""
    products = (f"{v / 1e12:.2f} {k}" for k, v in machine.flops_per_second.items())
    return (
        f"{jax.devices()[0].device_kind}: copies {machine.bytes_per_second / 1e9:.1f} GB/s, "
        f"multiplies {', '.join(products)} TFLOP/s"
    )


def as_json(rows: list[Row], machine: Machine, versions: dict[str, str]) -> str:
    """{"device", "date", "versions", "machine", "rows"}: fields as in `Machine` and `Row`."""
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    content: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": ours | versions,
        "machine": dataclasses.asdict(machine),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=1)


def _cells(row: Row) -> tuple[str, ...]:
    scratch = "" if row.temporaries is None else f"{row.temporaries / 1e6:.1f}"
    return (
        *(row.op, row.shape, row.dtype, row.mode, row.implementation),
        f"{row.milliseconds:.3f}",
        f"{row.low:.3f}-{row.high:.3f}",
        f"{row.ratio:.2f}",
        f"{row.over_roofline:.2f}",
        f"{max(row.errors.values()):.1e}",
        scratch,
    )
