"""The only list of mixers. A new one is a file beside these and a line here."""

from hypenet_jax.model.mixers.lightning import LightningSpec
from hypenet_jax.model.mixers.softmax import SoftmaxSpec

MixerSpec = SoftmaxSpec | LightningSpec
