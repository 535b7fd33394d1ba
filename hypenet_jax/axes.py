"""Glossary of axis letters, the array types made of them, and the logical axis names of parameters.

B batch    T query time    S key time or cache slots    C chunk       D model width    N query heads
K key/value heads    H head width    J rotary frequencies, H / 2    F mlp width    V vocabulary    L layers
R layers of one group

Capitals in annotations, the same letters lower-case in einsum. Logical names ("embed", "heads", ...) are attached
where a parameter is made; `hypenet_jax.sharding` maps them to mesh axes and is the only place that knows those.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int

Params: TypeAlias = Mapping[str, Any]
"""A tree of parameters: nested mappings whose leaves are arrays."""

Scalar = Float[Array, ""]
Tokens = Int[Array, "B T"]
Positions = Int[Array, "B T"]
SegmentIds = Int[Array, "B T"]
Weights = Float[Array, "B T"]
Hidden = Float[Array, "B T D"]
Logits = Float[Array, "B T V"]
Angles = Float[Array, "B T J"]
Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S K H"]
CacheSlots = Int[Array, "B T"]
SlotSegmentIds = Int[Array, "B S"]
Mask = Bool[Array, "B T"]

BATCH, TIME, HIDDEN = "batch", "time", "hidden"
EMBED, HEADS, KV_HEADS, HEAD_DIM = "embed", "heads", "kv_heads", "head_dim"
MLP, VOCAB, LAYERS, NORM = "mlp", "vocab", "layers", "norm"
