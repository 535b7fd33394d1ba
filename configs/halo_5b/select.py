"""Choice of the softmax layers, HypeNet-5B:  python -m launch.train configs/halo_5b/select.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import qwen3_4b


def config(
    teacher: str = "models/Qwen3-4B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_5b",
) -> RunConfig:
    """Choice of the softmax layers, HypeNet-5B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
    """
    return published.select(qwen3_4b(), teacher, data, run_dir, keep=9)
