"""Writing after 256K tokens, to plan with:  python -m launch.plan configs/halo_2b/decode_256k.py --topology v5e:1x1"""

from hypenet_jax.model.presets import hypenet_2b
from hypenet_jax.plan.config import ServeConfig

config = ServeConfig(model=hypenet_2b(), task="decode", context_length=2**18)
