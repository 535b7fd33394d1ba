"""The whole conversion to HypeNet-2B:  python -m launch.halo configs/halo_2b/halo.py"""

from configs.published import HALO_2B, chain_config

config = chain_config(HALO_2B)
