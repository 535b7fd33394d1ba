"""HALO stage 3, HypeNet-9B:  python -m launch.train configs/halo_9b/finetune.py"""

from configs.published import stage_config
from configs.recipes import HALO_9B

config = stage_config(HALO_9B, "finetune")
