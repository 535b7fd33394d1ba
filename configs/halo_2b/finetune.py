"""HALO stage 3, HypeNet-2B:  python -m launch.train configs/halo_2b/finetune.py"""

from configs.published import HALO_2B, stage_config

config = stage_config(HALO_2B, "finetune")
