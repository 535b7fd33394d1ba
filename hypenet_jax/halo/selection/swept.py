"""The decoder that a sweep scores: a teacher some of whose layers have the mixers of stage 1."""

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from hypenet_jax.axes import Hidden, Logits, Params, Positions, SegmentIds, Tokens
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.decoder import Decoder, Layer, Output
from hypenet_jax.model.layers import unroll_layers
from hypenet_jax.model.mixers import MixerSpec
from hypenet_jax.model.stacking import group_names
from hypenet_jax.model.token_layout import layout_tokens


def swept_params(teacher: Params, mixers: Params, replaced: Collection[int]) -> Params:
    """Parameters of a `SweptDecoder` that replaces these layers."""
    num_layers = jax.tree.leaves(mixers)[0].shape[0]
    mask = np.isin(np.arange(num_layers), [*replaced])
    return {**teacher, "mixers": mixers, "replaced": mask}


@dataclasses.dataclass(frozen=True)
class SweptDecoder:
    """The teacher with mixers of stage 1 in some layers; which ones is a parameter, so it compiles once.

    It stands in for a `Decoder` wherever one is only evaluated: `apply(variables, tokens, positions, segment_ids)`.
    A sweep writes no model.

    Attributes:
      teacher: a decoder of softmax layers, its groups of equal ones stacked.
      spec: of the mixers of stage 1.
    """

    teacher: Decoder
    spec: MixerSpec

    @property
    def config(self) -> ModelConfig:
        return self.teacher.config

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.teacher.dtype)

    def apply(
        self,
        variables: Params,
        tokens: Tokens | Hidden,
        positions: Positions | None = None,
        segment_ids: SegmentIds | None = None,
        method: str | None = None,
    ) -> Output | Logits:
        if method is not None:
            return self.teacher.apply(variables, tokens, method=method)
        params, teacher = variables["params"], self.teacher
        layout, _ = layout_tokens(tokens.shape[0], tokens.shape[1], positions, segment_ids)

        def apply(spec: MixerSpec, own: Params, x: Hidden) -> Hidden:
            layer = Layer(spec, self.config, teacher.dtype, teacher.start, tap=False)
            return layer.apply({"params": own}, x, None, layout)[0]

        def layer(
            spec: MixerSpec, x: Hidden, xs: tuple[Params, Params, Bool[Array, ""]]
        ) -> tuple[Hidden, None]:
            own, aligned, replaced = xs
            x = jax.lax.cond(
                replaced,
                lambda: apply(self.spec, {**own, "mixer": aligned}, x),
                lambda: apply(spec, own, x),
            )
            return x, None

        bound = teacher.bind({"params": params})
        x = bound.embed(tokens)
        for name, group in group_names(self.config, scan=True):
            one = functools.partial(layer, self.config.mixers[group[0]])
            own = slice(group.start, group.stop)
            mixers = jax.tree.map(lambda leaf, own=own: leaf[own], params["mixers"])
            rows = (params[name], mixers, jnp.asarray(params["replaced"])[own])
            x, _ = jax.lax.scan(one, x, rows, unroll=len(group) if unroll_layers() else 1)
        return Output(bound.final_norm(x))
