"""How the next token is drawn from its logits: greedy, or at random among all or the likeliest."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; None among all.
      top_p: draw among the fewest tokens that hold this much probability; 1 among all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        some = self.top_k is None or self.top_k >= 1
        if self.temperature < 0 or not 0 < self.top_p <= 1 or not some:
            raise ValueError(f"{self}: temperature >= 0, top_k >= 1 and 0 < top_p <= 1 are needed")


GREEDY = Sampling()


def draw(logits: Float[Array, "B V"], keys: Key[Array, "B"], sampling: Sampling) -> Int[Array, "B"]:
    """One token per row from its logits, each row with a key of its own."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        logits = jnp.where(_outside(logits, sampling.top_p), -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _outside(logits: Float[Array, "B V"], mass: float) -> Bool[Array, "B V"]:
    """Tokens outside the fewest likeliest ones that hold `mass`; the likeliest is never outside."""
    order = jnp.argsort(-logits, axis=-1)
    ranked = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    return jnp.take_along_axis(before >= mass, jnp.argsort(order, axis=-1), axis=-1)
