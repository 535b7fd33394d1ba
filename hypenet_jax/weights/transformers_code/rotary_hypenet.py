"""Frequencies of rotary positions, as they are or scaled for long contexts: linear, llama3 and yarn."""

import math
from typing import Any

import torch
from torch import Tensor


def frequencies(rotary: dict[str, Any], width: int, device: torch.device) -> tuple[Tensor, float]:
    """Radians per token of each pair of dimensions, float32, and the factor on rotated queries and keys.

    Args:
      rotary: `rope_parameters` of a config.json.
      width: of a head.
    Source: arXiv 2306.15595 (linear), 2407.21783 (llama3), 2309.00071 (yarn), as transformers computes them.
    """
    kind, theta, factor = rotary["rope_type"], rotary["rope_theta"], rotary.get("factor", 1.0)
    index = torch.arange(width // 2, dtype=torch.float32, device=device)
    plain = theta ** -(2 * index / width)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    length = rotary["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
        turns = plain * (length / (2 * math.pi))
        kept, larger = (turns - low) / (high - low), 1.0
    else:
        low, high = _yarn_range(rotary, width, length)
        kept, larger = 1.0 - (index - low) / (high - low), rotary.get("attention_factor")
        larger = 0.1 * math.log(factor) + 1.0 if larger is None else larger
    kept = kept.clamp(0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / factor, larger


def _yarn_range(rotary: dict[str, Any], width: int, length: int) -> tuple[float, float]:
    """The indices between which frequencies go over from plain to divided."""

    def index(turns: float) -> float:
        periods = length / (2 * math.pi * turns)
        return width / 2 * math.log(periods) / math.log(rotary["rope_theta"])

    low, high = index(rotary.get("beta_fast") or 32.0), index(rotary.get("beta_slow") or 1.0)
    if rotary.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high + 0.001 * (low == high)
