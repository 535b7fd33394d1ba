"""HALO stage 2, HypeNet-2B:  python -m launch.train configs/halo_2b/distill.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import HYPENET_2B_SOFTMAX_LAYERS, qwen3_1p7b


def config(
    teacher: str = "models/Qwen3-1.7B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_2b",
    upstream_parity: bool = False,
) -> RunConfig:
    """HALO stage 2, HypeNet-2B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
      upstream_parity: as the official code does it, to compare with the released models.
    """
    run = published.distill(
        qwen3_1p7b(),
        teacher,
        data,
        run_dir,
        softmax_layers=HYPENET_2B_SOFTMAX_LAYERS,
        peak_lr=1e-4,
    )
    return published.upstream_parity(run) if upstream_parity else run
