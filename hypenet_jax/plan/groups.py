"""Device groups of a collective, parsed from the notations of HLO text."""

import math
import re

import numpy as np

Groups = tuple[tuple[int, ...], ...]


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
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if meshed is not None:
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
