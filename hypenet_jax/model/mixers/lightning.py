"""Lightning attention: what it is (`LightningSpec`), what it remembers (`LightningState`), what it does."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class LightningSpec:
    """Linear attention whose memory fades by a fixed factor per head, exp(-slope_h).

    Attributes:
      num_heads: heads of queries, keys and values alike.
      head_dim: width of one head.
      rope_theta: base of the rotary positions; None for no positions.
      scale: factor on the queries, by the official names.
      qk_norm: RMS norm of every head's queries and keys.
      output_norm: one RMS norm over all heads jointly, before the gate.
      output_gate: multiply the outputs by sigmoid(W x), x the mixer's input.
    """

    num_heads: int
    head_dim: int
    rope_theta: float | None
    scale: Literal["1/sqrt(d)", "1/d", "1"] = "1/sqrt(d)"
    qk_norm: bool = True
    output_norm: bool = True
    output_gate: bool = True
