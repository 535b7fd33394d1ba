"""HALO stage 2, HypeNet-9B:  python -m launch.train configs/halo_9b/distill.py"""

from configs.published import stage_config
from configs.recipes import HALO_9B

config = stage_config(HALO_9B, "distill")
