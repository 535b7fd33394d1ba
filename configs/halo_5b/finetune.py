"""HALO stage 3, HypeNet-5B:  python -m launch.train configs/halo_5b/finetune.py"""

from configs.published import stage_config
from configs.recipes import HALO_5B

config = stage_config(HALO_5B, "finetune")
