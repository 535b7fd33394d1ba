"""Choice of the softmax layers, HypeNet-9B:  python -m launch.train configs/halo_9b/select.py"""

from configs.published import stage_config
from configs.recipes import HALO_9B

config = stage_config(HALO_9B, "select")
