"""HALO stage 1, HypeNet-9B:  python -m launch.train configs/halo_9b/align.py"""

from configs.published import stage_config
from configs.recipes import HALO_9B

config = stage_config(HALO_9B, "align")
