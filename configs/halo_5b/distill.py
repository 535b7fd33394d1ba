"""HALO stage 2, HypeNet-5B:  python -m launch.train configs/halo_5b/distill.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import HYPENET_5B_SOFTMAX_LAYERS, qwen3_4b


def config(
    teacher: str = "models/Qwen3-4B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_5b",
    upstream_parity: bool = False,
) -> RunConfig:
    """HALO stage 2, HypeNet-5B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
      upstream_parity: as the official code does it, to compare with the released models.
    """
    run = published.distill(
        qwen3_4b(),
        teacher,
        data,
        run_dir,
        softmax_layers=HYPENET_5B_SOFTMAX_LAYERS,
        peak_lr=5e-5,
    )
    return published.upstream_parity(run) if upstream_parity else run
