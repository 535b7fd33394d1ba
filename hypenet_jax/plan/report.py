"""A plan as text: memory per device, collectives, and the least time."""

from collections.abc import Sequence

from hypenet_jax.chips import GIB
from hypenet_jax.plan.hlo import KINDS, Collective
from hypenet_jax.plan.planning import DevicePlan, Roofline
from hypenet_jax.sharding import MESH_AXES


def report(plan: DevicePlan) -> str:
    """All lines of the plan."""
    return "\n".join([*_title(plan), *_memory(plan), *_sent(plan), *_time(plan)])


def _title(plan: DevicePlan) -> list[str]:
    mesh, topology = plan.program.mesh, plan.topology
    sizes = ", ".join(f"{name} {mesh.shape[name]}" for name in MESH_AXES)
    return [
        f"{plan.config.name} on {topology.name}: {mesh.size} devices, {sizes}",
        f"memory and messages: compiled in {plan.compiled.seconds:.0f} s by {topology.compiler}",
    ]


def _memory(plan: DevicePlan) -> list[str]:
    chip = plan.topology.chip
    limit = "not known" if chip is None or chip.memory is None else f"{chip.memory / GIB:8.2f}"
    return [
        "memory of a device, GiB",
        f"  arguments           {plan.compiled.arguments / GIB:8.2f}",
        f"  peak                {plan.compiled.peak / GIB:8.2f}",
        f"  limit               {limit}",
    ]


def _sent(plan: DevicePlan) -> list[str]:
    rows = [_row(kind, plan.compiled.collectives) for kind in KINDS]
    return ["a device sends, per call", *(filter(None, rows))]


def _row(kind: str, collectives: Sequence[Collective]) -> str:
    same = [c for c in collectives if c.kind == kind]
    times, sent = sum(c.times for c in same), sum(c.times * c.sent for c in same)
    return f"  {kind:<20}{sent / GIB:8.2f} GiB in {times}" if same else ""


def _time(plan: DevicePlan) -> list[str]:
    flops = plan.program.flops
    lines = [f"FLOPs of a call         {flops.model:.3g}, recomputed {flops.recomputed:.3g}"]
    return lines if plan.roofline is None else lines + _at_least(plan, plan.roofline)


def _at_least(plan: DevicePlan, roofline: Roofline) -> list[str]:
    program, seconds = plan.program, roofline.seconds
    hours = program.calls * seconds / 3600
    billions = program.calls * program.tokens / 1e9
    return [
        "time: estimated from the peak rates of the chip, which no run reaches",
        f"a call takes at least   {seconds:.4g} s ({roofline.bound}): compute {roofline.compute:.4g}, "
        f"memory {roofline.memory:.4g}, links {roofline.links:.4g}",
        f"at most                 {program.tokens / seconds:.4g} tokens/s",
        f"all {program.calls} calls, {billions:.3g} B tokens: at least {hours:.3g} hours, "
        f"{hours * plan.topology.count:.3g} chip-hours",
    ]
