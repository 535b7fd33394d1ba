"""HALO stage 2, HypeNet-5B:  python -m launch.train configs/halo_5b/distill.py"""

from configs.published import HALO_5B, stage_config

config = stage_config(HALO_5B, "distill")
