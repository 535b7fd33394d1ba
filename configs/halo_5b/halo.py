"""The whole conversion to HypeNet-5B:  python -m launch.halo configs/halo_5b/halo.py"""

from configs.published import HALO_5B, chain_config

config = chain_config(HALO_5B)
