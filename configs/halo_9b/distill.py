"""HALO stage 2, HypeNet-9B:  python -m launch.train configs/halo_9b/distill.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import HYPENET_9B_SOFTMAX_LAYERS, qwen3_8b


def config(
    teacher: str = "models/Qwen3-8B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_9b",
) -> RunConfig:
    """HALO stage 2, HypeNet-9B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
    """
    return published.distill(
        qwen3_8b(),
        teacher,
        data,
        run_dir,
        softmax_layers=HYPENET_9B_SOFTMAX_LAYERS,
        peak_lr=3e-5,
    )
