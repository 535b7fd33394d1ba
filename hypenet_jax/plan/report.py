"""A plan as text: memory per device, collectives, and the least time."""

from collections.abc import Iterator

from hypenet_jax.chips import GIB
from hypenet_jax.config import StageConfig
from hypenet_jax.plan.hlo import KINDS
from hypenet_jax.plan.planning import DevicePlan, Roofline
from hypenet_jax.sharding import MESH_AXES


def report(plan: DevicePlan) -> str:
    """All lines of the plan."""
    return "\n".join(_lines(plan))


def _lines(plan: DevicePlan) -> Iterator[str]:
    mesh, topology, compiled = plan.program.mesh, plan.topology, plan.compiled
    flops, chip = plan.program.flops, topology.chip
    sizes = ", ".join(f"{name} {mesh.shape[name]}" for name in MESH_AXES)
    limit = "not known" if chip is None or chip.memory is None else f"{chip.memory / GIB:8.2f}"
    yield f"{plan.config.name} on {topology.name}: {mesh.size} devices, {sizes}"
    if isinstance(plan.config, StageConfig) and plan.config.data.curriculum:
        data = plan.config.data
        yield (
            f"planned: rows of {data.context_length} tokens, the longest of the curriculum; the "
            f"{data.phases[-1].first_batch} steps with shorter ones need no more memory and are not counted"
        )
    yield f"memory and messages: compiled in {compiled.seconds:.0f} s by {topology.compiler}"
    yield "memory of a device, GiB"
    yield f"  arguments           {compiled.arguments / GIB:8.2f}"
    yield f"  peak                {compiled.peak / GIB:8.2f}"
    yield f"  limit               {limit}"
    yield "a device sends, per call"
    for kind in KINDS:
        if same := [c for c in compiled.collectives if c.kind == kind]:
            times, sent = sum(c.times for c in same), sum(c.times * c.sent for c in same)
            yield f"  {kind:<20}{sent / GIB:8.2f} GiB in {times}"
    yield f"FLOPs of a call         {flops.model:.3g}, recomputed {flops.recomputed:.3g}"
    if plan.roofline is not None:
        yield from _at_least(plan, plan.roofline)


def _at_least(plan: DevicePlan, roofline: Roofline) -> Iterator[str]:
    program, seconds = plan.program, roofline.seconds
    hours = program.calls * seconds / 3600
    billions = program.calls * program.tokens / 1e9
    yield "time: estimated from the peak rates of the chip, which no run reaches"
    yield (
        f"a call takes at least   {seconds:.4g} s ({roofline.bound}): compute {roofline.compute:.4g}, "
        f"memory {roofline.memory:.4g}, links {roofline.links:.4g}"
    )
    yield f"at most                 {program.tokens / seconds:.4g} tokens/s"
    yield (
        f"all {program.calls} calls, {billions:.3g} B tokens: at least {hours:.3g} hours, "
        f"{hours * plan.topology.count:.3g} chip-hours"
    )
