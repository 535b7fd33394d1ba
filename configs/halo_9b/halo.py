"""The whole conversion to HypeNet-9B:  python -m launch.halo configs/halo_9b/halo.py"""

from configs.published import chain_config
from configs.recipes import HALO_9B

config = chain_config(HALO_9B)
