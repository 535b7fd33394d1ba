"""HALO stage 3, HypeNet-9B:  python -m launch.train configs/halo_9b/finetune.py"""

from configs import published
from hypenet_jax.config import RunConfig
from hypenet_jax.model.presets import HYPENET_9B_SOFTMAX_LAYERS, qwen3_8b

LOGIT_SCALE = 362.0  # constant a of log(t + a) / log(a): the release's default


def config(
    teacher: str = "models/Qwen3-8B",
    data: str = "data/fineweb-edu",
    run_dir: str = "runs/halo_9b",
    upstream_parity: bool = False,
) -> RunConfig:
    """HALO stage 3, HypeNet-9B.

    Args:
      teacher: Hugging Face folder of the teacher.
      data: folder of JSON lines.
      run_dir: where everything goes.
      upstream_parity: as the official code does it, to compare with the released models.
    """
    run = published.finetune(
        qwen3_8b(),
        teacher,
        data,
        run_dir,
        softmax_layers=HYPENET_9B_SOFTMAX_LAYERS,
        logit_scale=LOGIT_SCALE,
    )
    return published.upstream_parity(run) if upstream_parity else run
