"""The whole conversion to HypeNet-9B:  python -m launch.halo configs/halo_9b/halo.py

It keeps softmax attention in the published layers; a select stage can choose them anew, see configs/quickstart.py.
"""

from configs import published
from configs.halo_9b import align, distill, finetune
from hypenet_jax.config import HaloConfig


def config(
    teacher: str = "models/Qwen3-8B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_9b",
    upstream_parity: bool = False,
) -> HaloConfig:
    """Stages 1, 2 and 3 in order.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
      upstream_parity: as the official code does it, to compare with the released models.
    """
    stages = (align, distill, finetune)
    return published.chain(
        *(stage.config(teacher, data, run_dir, upstream_parity) for stage in stages)
    )
