"""HALO stage 1, HypeNet-9B:  python -m launch.train configs/halo_9b/align.py"""

from configs.published import HALO_9B, stage_config

config = stage_config(HALO_9B, "align")
