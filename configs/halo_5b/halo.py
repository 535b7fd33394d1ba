"""The whole conversion to HypeNet-5B:  python -m launch.halo configs/halo_5b/halo.py

It keeps softmax attention in the published layers; a select stage can choose them anew, see configs/quickstart.py.
"""

from configs.published import HALO_5B, chain_config

config = chain_config(HALO_5B)
