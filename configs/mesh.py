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


# For each size a slice of TPUs, with the micro-batches that leave one row of 16K to each device; and a node, where the
# recipe's own do.
SLICES = {"2b": ("v5e:4x4", 8), "5b": ("v6e:4x4", 8), "9b": ("v5p:2x4x4", 4)}
NODES = {"2b": "h100:8", "5b": "h100:8", "9b": "h200:8"}

STAGES = ("align", "distill", "finetune")
TRAINING = tuple(
    Layout(
        f"configs/halo_{size}/{stage}.py",
        topology,
        ("--training.loop.accumulate", str(parts)) if stage == "finetune" else (),
    )
    for size, (topology, parts) in SLICES.items()
    for stage in STAGES
) + tuple(
    Layout(f"configs/halo_{size}/{stage}.py", topology)
    for size, topology in NODES.items()
    for stage in STAGES
)
SERVING = (
    Layout("configs/halo_2b/decode_256k.py", "v5e:1x1"),
    Layout("configs/halo_2b/prefill_1m.py", "v5p:2x2x1"),
)
