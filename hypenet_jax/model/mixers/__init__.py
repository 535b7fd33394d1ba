"""The only list of mixers: a new one is a file beside these and its spec in `MIXERS`."""

from collections.abc import Iterable

from hypenet_jax.model.mixers.gdn import GatedDeltaSpec
from hypenet_jax.model.mixers.kda import KimiDeltaSpec
from hypenet_jax.model.mixers.lightning import LightningSpec
from hypenet_jax.model.mixers.softmax import SoftmaxSpec
from hypenet_jax.model.mixers.spec import MixerSpec

MIXERS: tuple[type[MixerSpec], ...] = (SoftmaxSpec, LightningSpec, GatedDeltaSpec, KimiDeltaSpec)


def mixer_kind(name: str) -> type[MixerSpec]:
    """The kind of mixer of this `NAME`; a ValueError lists those that there are."""
    kinds = {kind.NAME: kind for kind in MIXERS}
    if name not in kinds:
        raise ValueError(f"no mixer {name!r}; there are {', '.join(kinds)}")
    return kinds[name]


def check_listed(specs: Iterable[MixerSpec]) -> None:
    """Raises ValueError: a layer's mixer is of no kind in `MIXERS`."""
    for layer, spec in enumerate(specs):
        if type(spec) not in MIXERS:
            kinds = ", ".join(kind.__name__ for kind in MIXERS)
            raise ValueError(f"the mixer of layer {layer} is {spec!r}; MIXERS has {kinds}")
