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


# 8 rows of 16K make a micro-batch of the published recipe: one per device of a node.
ON_16 = ("--training.loop.accumulate", "8")
ON_32 = ("--training.loop.accumulate", "4")

TRAINING = (
    Layout("configs/halo_2b/align.py", "v5e:4x4"),
    Layout("configs/halo_2b/distill.py", "v5e:4x4"),
    Layout("configs/halo_2b/finetune.py", "v5e:4x4", ON_16),
    Layout("configs/halo_5b/align.py", "v6e:4x4"),
    Layout("configs/halo_5b/distill.py", "v6e:4x4"),
    Layout("configs/halo_5b/finetune.py", "v6e:4x4", ON_16),
    Layout("configs/halo_9b/align.py", "v5p:2x4x4"),
    Layout("configs/halo_9b/distill.py", "v5p:2x4x4"),
    Layout("configs/halo_9b/finetune.py", "v5p:2x4x4", ON_32),
    Layout("configs/halo_2b/align.py", "h100:8"),
    Layout("configs/halo_2b/distill.py", "h100:8"),
    Layout("configs/halo_2b/finetune.py", "h100:8"),
    Layout("configs/halo_5b/align.py", "h100:8"),
    Layout("configs/halo_5b/distill.py", "h100:8"),
    Layout("configs/halo_5b/finetune.py", "h100:8"),
    Layout("configs/halo_9b/align.py", "h200:8"),
    Layout("configs/halo_9b/distill.py", "h200:8"),
    Layout("configs/halo_9b/finetune.py", "h200:8"),
)
SERVING = (
    Layout("configs/halo_2b/decode_256k.py", "v5e:1x1"),
    Layout("configs/halo_2b/prefill_1m.py", "v5p:2x2x1"),
)
