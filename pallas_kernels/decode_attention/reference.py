"""The definition of decode attention: that of attention, of one query per row."""

import jax

from pallas_kernels.attention.operands import Operands
from pallas_kernels.attention.partial_softmax import Part
from pallas_kernels.attention.reference import reference_part


def reference(operands: Operands, *, scale: float) -> Part:
    """Masked softmax as written in the contract of `decode_attention`."""
    return jax.tree.map(lambda x: x[:, 0], reference_part(operands, scale=scale))
