"""What the frequencies of rotary positions become for contexts longer than those of the first training.

Fields have the names of `rope_scaling` in config.json. f are frequencies in radians per token, theta is their base.
"""

import dataclasses
import math
from typing import ClassVar, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

Frequencies = Float[Array, "J"]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """f / factor: all positions shrink.  Source: arXiv 2306.15595."""

    factor: float
    logit_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def frequencies(self, f: Frequencies, theta: float) -> Frequencies:
        return f / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies are divided by `factor`, fast ones stay.

    n = L f / 2 pi, turns in the original length L;  w = (n - low) / (high - low), from 0 to 1
    f' = w f + (1 - w) f / factor

    Source: Llama 3.1 (arXiv 2407.21783), as transformers computes it.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    logit_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} is not above low_freq_factor {self.low_freq_factor}"
            )

    def frequencies(self, f: Frequencies, theta: float) -> Frequencies:
        turns = f * (self.original_max_position_embeddings / (2 * math.pi))
        low, high = self.low_freq_factor, self.high_freq_factor
        return _blend(f, self.factor, jnp.clip((turns - low) / (high - low), 0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: like `Llama3Scaling` along the index of a frequency, and queries and keys are made larger.

    i(n) = H ln(L / 2 pi n) / 2 ln theta, the index of the frequency that turns n times in the original length L
    w falls from 1 at i(beta_fast) to 0 at i(beta_slow), both rounded outwards where `truncate`
    f' = w f + (1 - w) f / factor
    Rotated queries and keys are multiplied by `attention_factor`; None is 0.1 ln(factor) + 1.

    Source: arXiv 2309.00071, as transformers computes it.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast} is not above beta_slow {self.beta_slow}")

    @property
    def logit_factor(self) -> float:
        """Of the product of a query and a key."""
        each = self.attention_factor
        return (0.1 * math.log(self.factor) + 1.0 if each is None else each) ** 2

    def frequencies(self, f: Frequencies, theta: float) -> Frequencies:
        last = 2 * len(f) - 1
        low, high = self._index(self.beta_fast, f, theta), self._index(self.beta_slow, f, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, last)
        high += 0.001 * (low == high)
        indices = jnp.arange(len(f), dtype=jnp.float32)
        return _blend(f, self.factor, 1.0 - jnp.clip((indices - low) / (high - low), 0.0, 1.0))

    def _index(self, turns: float, f: Frequencies, theta: float) -> float:
        periods = self.original_max_position_embeddings / (2 * math.pi * turns)
        return len(f) * math.log(periods) / math.log(theta)


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling
"""None stands for frequencies as they are."""


def _check_factor(factor: float) -> None:
    if factor < 1:
        raise ValueError(f"factor {factor} is below 1")


def _blend(f: Frequencies, factor: float, kept: Frequencies) -> Frequencies:
    return kept * f + (1.0 - kept) * f / factor
