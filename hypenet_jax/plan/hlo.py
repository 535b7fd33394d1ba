"""Collectives of a compiled program, parsed from its HLO text.

A collective in a loop body counts once per iteration. Bytes are what one device sends in a ring algorithm, the
minimum over all algorithms.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]
KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# Dtypes name their bits (bf16, s8, u64, f8e4m3), but pred, which has 8.
_ARRAY = re.compile(r"[a-z]+(\d*)\w*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of KINDS.
      sent: bytes that a device sends per execution.
      times: executions per call of the program.
      groups: groups of communicating devices, as mesh positions; of a permute its (source, target) pairs.
    """

    kind: str
    sent: float
    times: int
    groups: Groups


def collectives(text: str) -> list[Collective]:
    """Every collective in the text of an optimized program.

    The body of a loop whose trip count the text does not give counts once.
    """
    bodies = _computations(text)
    times = _times(bodies)
    stated = re.search(r"num_partitions=(\d+)", text)
    devices = int(stated[1]) if stated else 1
    found = [
        _collective(name, line, times[name], devices)
        for name, lines in bodies.items()
        for line in lines
    ]
    return [one for one in found if one is not None and one.times and one.sent]


def _computations(text: str) -> dict[str, list[str]]:
    """Name of each computation to its lines; the entry computation is named "ENTRY"."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            lines = bodies.setdefault("ENTRY" if line.startswith("ENTRY") else start[1], [])
        else:
            lines.append(line)
    return bodies


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """Executions of each computation per call of the program: the sum over its call sites."""
    calls: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = _trips(line, bodies)
            for called in _called(line):
                calls[called].append((name, trips))

    @functools.cache
    def times(name: str) -> int:
        called = sum(times(caller) * trips for caller, trips in calls[name])
        return 1 if name == "ENTRY" else called

    return {name: times(name) for name in bodies}


def _called(line: str) -> list[str]:
    listed = [name for names in _BRANCHES.findall(line) for name in names.split(",")]
    return _CALLED.findall(line) + [name.strip().lstrip("%") for name in listed]


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Trip count of a while loop: the compiler's annotation, else the condition's bound over the increment."""
    if " while(" not in line:
        return 1
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition, body = (re.search(rf"{part}=%?([\w.\-]+)", line) for part in ("condition", "body"))
    test = "\n".join(bodies.get(condition[1], [])) if condition else ""
    bounds = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", test)
    counter = re.search(r"get-tuple-element\(.*?\), index=(\d+)", test)
    if len(bounds) != 1 or counter is None or body is None:
        return 1
    return -(-int(bounds[0]) // _step("\n".join(bodies[body[1]]), int(counter[1])))


def _step(body: str, counter: int) -> int:
    """Increment of a loop's counter, element `counter` of its tuple; 1 if it cannot be read."""
    root = re.search(r"ROOT .* tuple\((.*?)\)", body)
    if root is None:
        return 1
    after = re.sub(r"/\*.*?\*/", "", root[1]).split(",")[counter].strip()
    added = re.search(rf"{re.escape(after)} = \S+ add\([^,]*, (%[\w.\-]+)\)", body)
    constant = added and re.search(rf"{re.escape(added[1])} = \S+ constant\((\d+)\)", body)
    return int(constant[1]) if constant else 1


def _collective(computation: str, line: str, times: int, devices: int) -> Collective | None:
    operation = _OPERATION.match(line)
    if operation is None:
        return None
    result, name, rest = operation.groups()
    kind = name.removesuffix("-start")
    if kind not in KINDS:
        return None
    groups = groups_of(rest, devices)
    n = len(groups[0])
    size = _bytes(result.replace("u32[]", ""))  # context words of an async permute
    if name.endswith("-start"):
        # Result bytes over tuple bytes; all but all-reduce also list their operand.
        shares = {"all-gather": n / (n + 1), "reduce-scatter": 1 / (n + 1), "all-reduce": 1.0}
        size *= shares.get(kind, 0.5)
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind, size = "reduce-scatter", size / n
    # Bytes that each of n devices sends, over those of the result on a device.
    sent = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0}
    sent |= dict.fromkeys(("collective-permute", "collective-broadcast"), 1.0)
    return Collective(kind, size * sent.get(kind, (n - 1) / n), times, groups)


def _bytes(shape: str) -> float:
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) * int(bits or 8) / 8
        for bits, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", shape))
    )


def groups_of(attributes: str, devices: int) -> Groups:
    """Device groups of a collective as mesh positions, or the pairs of a permute; one group of all by default.

    {{0,1},{2,3}} lists the groups. [2,4]<=[4,2]T(1,0) is iota over the second shape, transposed and reshaped to the
    first, one group per row. mesh['a'=2,'b'=4] {'b'} groups along axis b; 'b':(2)2 means the sub-axis of size 2 of
    axis b that follows sub-axes of total size 2.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    if listed is not None:
        return tuple(map(_numbers, re.findall(r"\{([\d,]+)\}", listed[1])))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if counted is not None:
        shape, source, order = map(_numbers, counted.groups(""))
        return _rows(np.arange(devices).reshape(source).transpose(order or None).reshape(shape))
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        return _along(meshed[1], meshed[2])
    return _rows(np.arange(devices)[None])


def _along(mesh: str, named: str) -> Groups:
    parts: dict[str, list[tuple[int, int | None]]] = {}
    for axis, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named):
        parts.setdefault(axis, []).append((int(before or 1), int(size) if size else None))
    shape: list[int] = []
    inside: list[int] = []
    for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh):
        done = 1
        for before, wide in sorted(parts.get(axis, [])):
            wide = wide or int(size)
            shape += [before // done, wide]
            inside.append(len(shape) - 1)
            done = before * wide
        shape.append(int(size) // done)
    outside = [i for i in range(len(shape)) if i not in inside]
    grid = np.arange(math.prod(shape)).reshape(shape).transpose(*outside, *inside)
    return _rows(grid.reshape(math.prod(shape[i] for i in outside), -1))


def _rows(grid: np.ndarray) -> Groups:
    return tuple(map(tuple, grid.tolist()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
