"""Choice of the softmax layers, HypeNet-2B:  python -m launch.train configs/halo_2b/select.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import qwen3_1p7b


def config(
    teacher: str = "models/Qwen3-1.7B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_2b",
    upstream_parity: bool = False,
) -> RunConfig:
    """Choice of the softmax layers, HypeNet-2B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
      upstream_parity: as the official code does it, to compare with the released models.
    """
    run = published.select(qwen3_1p7b(), teacher, data, run_dir, keep=7)
    return published.upstream_parity(run) if upstream_parity else run
