"""Reading 1M tokens, to plan with:  python -m launch.plan configs/halo_2b/prefill_1m.py --topology v5p:2x2x1"""

from hypenet_jax.model.presets import hypenet_2b
from hypenet_jax.plan.config import ServeConfig
from hypenet_jax.sharding import MeshConfig

config = ServeConfig(
    model=hypenet_2b(), task="prefill", context_length=2**20, mesh=MeshConfig(tensor=4)
)
