"""Softmax attention: what it is (`SoftmaxSpec`), what it remembers (`KVState`), what it does (`SoftmaxMixer`)."""

import dataclasses

from hypenet_jax.model.hype import LogLengthScale


@dataclasses.dataclass(frozen=True)
class SoftmaxSpec:
    """Causal softmax attention with grouped key/value heads and per-head RMS norms of queries and keys.

    Attributes:
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: key/value heads; query head j reads key/value head j // (num_heads // num_kv_heads).
      head_dim: width of one head.
      rope_theta: base of the rotary positions; None is NoPE, as HypeNet's softmax layers are.
      output_gate: multiply the heads' outputs by sigmoid(W x), x the mixer's input.
      logit_scale: factor on the logits: `LogLengthScale` by position, a constant, or None for 1.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float | None = None
    output_gate: bool = False
    logit_scale: LogLengthScale | float | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
