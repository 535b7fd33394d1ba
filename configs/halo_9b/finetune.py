"""HALO stage 3, HypeNet-9B:  python -m launch.train configs/halo_9b/finetune.py"""

from configs.published import HALO_9B, stage_config

config = stage_config(HALO_9B, "finetune")
