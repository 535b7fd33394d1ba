"""Ops with more than one implementation: plain arrays in, plain arrays out, no model in sight."""

from pallas_kernels.attention import attention
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_step import lightning_step
from pallas_kernels.linear_loss import linear_cross_entropy, linear_kl, linear_kl_top_k
from pallas_kernels.norm_rotary import norm_rotary
from pallas_kernels.projection import projection

__all__ = [
    "UnsupportedError",
    "attention",
    "decode_attention",
    "lightning_attention",
    "lightning_step",
    "linear_cross_entropy",
    "linear_kl",
    "linear_kl_top_k",
    "norm_rotary",
    "projection",
]
