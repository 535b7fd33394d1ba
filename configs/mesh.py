"""A layout to plan every shipped config on, and what to type for it there.

    python -m launch.plan configs/halo_9b/distill.py --topology v5p:2x4x4

A step reads the same rows everywhere; at 16K it is cut into as many micro-batches as leave each device one row.
`launch.train` takes the same words. Each was compiled for its devices, and fits.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """A config on a topology.

    Attributes:
      words: of the command line, beside the topology.
    """

    config: str
    topology: str
    words: tuple[str, ...] = ()


# Of each size the micro-batches of stage 3 that leave one row of 16K to each device; None: the recipe's own do.
PLACES = {
    "2b": {"v5e:4x4": 8, "h100:8": None},
    "5b": {"v6e:4x4": 8, "h100:8": None},
    "9b": {"v5p:2x4x4": 4, "h200:8": None},
}
TRAINING = tuple(
    Layout(
        f"configs/halo_{size}/{stage}.py",
        topology,
        ("--training.loop.accumulate", str(parts)) if parts and stage == "finetune" else (),
    )
    for size, places in PLACES.items()
    for topology, parts in places.items()
    for stage in ("align", "distill", "finetune")
)
SERVING = (
    Layout("configs/halo_2b/decode_256k.py", "v5e:1x1"),
    Layout("configs/halo_2b/prefill_1m.py", "v5p:2x2x1"),
)
