"""The whole conversion to HypeNet-5B:  python -m launch.halo configs/halo_5b/halo.py"""

from configs.published import chain_config
from configs.recipes import HALO_5B

config = chain_config(HALO_5B)
