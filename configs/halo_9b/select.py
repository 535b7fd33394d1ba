"""Choice of the softmax layers, HypeNet-9B:  python -m launch.train configs/halo_9b/select.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import qwen3_8b


def config(
    teacher: str = "models/Qwen3-8B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_9b",
) -> RunConfig:
    """Choice of the softmax layers, HypeNet-9B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
    """
    return published.select(qwen3_8b(), teacher, data, run_dir, keep=9)
