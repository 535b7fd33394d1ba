"""The whole conversion to HypeNet-9B:  python -m launch.halo configs/halo_9b/halo.py"""

from configs.published import HALO_9B, chain_config

config = chain_config(HALO_9B)
