"""HALO stage 2, HypeNet-2B:  python -m launch.train configs/halo_2b/distill.py"""

from configs.published import stage_config
from configs.recipes import HALO_2B

config = stage_config(HALO_2B, "distill")
