"""Ops with more than one implementation: plain arrays in, plain arrays out, no model in sight.

`implementation=None` chooses by device and shapes and logs the choice once; a name runs that implementation or raises
`UnsupportedError`. On a mesh, `mesh_axes=MeshAxes(...)` says which axes shard the arrays.
"""

from pallas_kernels.attention import attention
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.dispatch import UnsupportedError, interpreted, platform
from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_attention.sharded import NEGLIGIBLE_DECAY, neighbor_exchange
from pallas_kernels.lightning_step import HeadNorms, lightning_step
from pallas_kernels.linear_loss import (
    Divergence,
    linear_cross_entropy,
    linear_distillation,
    linear_kl,
    linear_kl_top_k,
)
from pallas_kernels.mesh import AxisNames, MeshAxes, num_shards, on_each_device
from pallas_kernels.norm_rotary import norm_rotary, rms_norm, rotate
from pallas_kernels.projection import Norm, multiplicand, projection

__all__ = [
    "NEGLIGIBLE_DECAY",
    "AxisNames",
    "Divergence",
    "HeadNorms",
    "MeshAxes",
    "Norm",
    "UnsupportedError",
    "attention",
    "decode_attention",
    "gated_delta_rule",
    "interpreted",
    "lightning_attention",
    "lightning_step",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_kl",
    "linear_kl_top_k",
    "multiplicand",
    "neighbor_exchange",
    "norm_rotary",
    "num_shards",
    "on_each_device",
    "platform",
    "projection",
    "rms_norm",
    "rotate",
]
