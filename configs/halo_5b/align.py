"""HALO stage 1, HypeNet-5B:  python -m launch.train configs/halo_5b/align.py"""

from configs.published import HALO_5B, stage_config

config = stage_config(HALO_5B, "align")
