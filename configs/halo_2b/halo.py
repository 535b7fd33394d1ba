"""The whole conversion to HypeNet-2B:  python -m launch.halo configs/halo_2b/halo.py"""

from configs.published import chain_config
from configs.recipes import HALO_2B

config = chain_config(HALO_2B)
