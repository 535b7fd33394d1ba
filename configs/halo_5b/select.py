"""Choice of the softmax layers, HypeNet-5B:  python -m launch.train configs/halo_5b/select.py"""

from configs.published import stage_config
from configs.recipes import HALO_5B

config = stage_config(HALO_5B, "select")
