"""The decoder of teacher and student alike: tokens to hidden states, and hidden states to logits by a separate call."""

import functools
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypenet_jax import axes
from hypenet_jax.axes import Hidden, Logits, Params, Positions, SegmentIds, Tokens
from hypenet_jax.explicit_axes import left_to_compiler
from hypenet_jax.model.config import ModelConfig
from hypenet_jax.model.layers import (
    Embedding,
    GatedMLP,
    Initialization,
    Linear,
    Product,
    RMSNorm,
    unroll_layers,
)
from hypenet_jax.model.mixers.spec import MixerSpec, MixerState
from hypenet_jax.model.stacking import group_names
from hypenet_jax.model.token_layout import CachePosition, TokenLayout, layout_tokens, start_position
from hypenet_jax.model.vocabulary import padded_rows, with_padding
from hypenet_jax.sharding import LogicalAxes, constrain


@flax.struct.dataclass
class DecodeState:
    """One state per layer, and where each row stopped."""

    layers: tuple[MixerState, ...]
    cache_position: CachePosition

    @property
    def lengths(self) -> jax.Array:
        """Real tokens seen per row."""
        return self.cache_position.written

    def with_capacity(self, capacity: int) -> "DecodeState":
        """The same state with capacity for this many tokens per row; no row may hold more."""
        layers = tuple(layer.with_capacity(capacity) for layer in self.layers)
        return DecodeState(layers, self.cache_position.with_capacity(capacity))

    def mark(self) -> "DecodeState":
        """What `rewound` needs to come back here: a copy of all but the cache slots; this state may be donated."""
        return jax.tree.map(jnp.copy, self.with_capacity(0))

    def rewound(self, mark: "DecodeState") -> "DecodeState":
        """The state where `mark` was taken; no row may have begun with another text since, nor lost slots."""
        layers = tuple(a.rewound(b) for a, b in zip(self.layers, mark.layers, strict=True))
        return DecodeState(layers, self.cache_position.rewound(mark.cache_position))


@flax.struct.dataclass
class Tap:
    """Inputs of a mixer (the normed residual stream) and its outputs (before they are added back)."""

    inputs: Float[Array, "*L B T D"]
    outputs: Float[Array, "*L B T D"]


@flax.struct.dataclass
class Output:
    """Result of a call: final-normed hidden states; the state if one was given; taps "L B T D" if asked for."""

    hidden: Hidden
    state: DecodeState | None = None
    taps: Tap | None = None


class Layer(nn.Module):
    """x += mixer(norm(x)); x += mlp(norm(x))."""

    spec: MixerSpec
    config: ModelConfig
    dtype: DTypeLike
    start: Initialization
    tap: bool

    def setup(self) -> None:
        config = self.config
        norm = functools.partial(RMSNorm, (config.d_model,), (axes.NORM,), config.norm_eps)
        self.mixer_norm, self.mlp_norm = norm(), norm()
        widths = {"d_model": config.d_model, "norm_eps": config.norm_eps}
        self.mixer = self.spec.module(**widths, start=self.start, dtype=self.dtype)
        self.mlp = GatedMLP(config.d_model, config.d_mlp, self.start)

    def __call__(
        self, x: Hidden, state: MixerState | None, layout: TokenLayout
    ) -> tuple[Hidden, tuple[MixerState | None, Tap | None]]:
        # A tap is of arrays.
        h = self.mixer_norm(x) if self.tap else self.mixer_norm.deferred(x)
        y, state = self.mixer(h, layout, state)
        tap = Tap(cast(Hidden, h), y) if self.tap else None
        x = x + y
        x = x + self.mlp(self.mlp_norm.deferred(x))
        x = constrain(x, (axes.BATCH, axes.TIME, axes.HIDDEN))
        return x, (state, tap)

    def mixer_product(self, x: Hidden, layout: TokenLayout) -> Product:
        """What the mixer adds to the stream x from its start, the last product not yet computed."""
        return self.mixer(self.mixer_norm.deferred(x), layout, None)[0]

    def mlp_product(self, x: Hidden) -> Product:
        """What the MLP adds to the stream x, likewise."""
        return cast(Product, self.mlp(self.mlp_norm.deferred(x)))


def activation_axes(model: "Decoder | ModelConfig", path: str) -> LogicalAxes:
    """Logical names of the first axes of an array that is computed, by its path in `Output`, `DecodeState` and what has
    them as parts; rows come first in all others."""
    config, parts = model.config if isinstance(model, Decoder) else model, path.split("/")
    if "layers" in parts:
        layer, name = parts[parts.index("layers") + 1 :]
        return config.mixers[int(layer)].STATE_AXES[name]
    tap = (axes.LAYERS, axes.BATCH, axes.TIME)
    known = {"hidden": (axes.BATCH, axes.TIME), "inputs": tap, "outputs": tap}
    return known.get(parts[-1], (axes.BATCH, axes.TIME) if path == "" else (axes.BATCH,))


class Decoder(nn.Module):
    """A decoder-only language model; Transformers and HypeNet differ in `config.mixers` alone.

    Attributes:
      dtype: of activations and of the weights where they are used; parameters are stored in float32.
      remat: "full" recomputes each layer in the backward pass, "none" keeps what it needs.
      scan: each group of equal layers is one scan over stacked parameters (training); otherwise layers stand alone
        (decoding, where a scan would copy the caches). `stack_layers` and `unstack_layers` change between the two.
      vocab_multiple: tables of tokens are padded with rows of zeros to a multiple of this, which a mesh can cut; logits
        have none of them.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.bfloat16
    remat: str = "none"
    scan: bool = True
    start: Initialization = Initialization()
    vocab_multiple: int = 1

    @nn.nowrap
    @left_to_compiler(activation_axes)
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """As every Linen module's, also on a mesh with explicit axes: rows and time of the results are then cut as
        `hypenet_jax.sharding` says, states as their mixers say, and the vocabulary of logits is whole."""
        return super().apply(variables, *args, **kwargs)

    def setup(self) -> None:
        config = self.config
        table = (padded_rows(config.vocab_size, self.vocab_multiple), config.d_model)
        self.embed = Embedding(*table, self.start.embedding_std, self.dtype)
        if not config.tie_embeddings:
            self.head = Linear(table, (axes.VOCAB, axes.EMBED), self.start.std)
        self.final_norm = RMSNorm((config.d_model,), (axes.NORM,), config.norm_eps)

    @nn.compact
    def __call__(
        self,
        tokens: Tokens | Hidden,
        positions: Positions | None = None,
        segment_ids: SegmentIds | None = None,
        state: DecodeState | None = None,
        taps: bool = False,
    ) -> Output:
        """Hidden states of tokens (or of embeddings, "B T D").

        Args:
          positions: of each token in its segment; None counts them here.
          segment_ids: segment of each token, 0 for padding; None: one segment, no padding.
          state: where to go on from; the call then also returns the state after its last token.
          taps: also return the inputs and outputs of every mixer.
        Returns:
          Outputs at padding are finite and mean nothing. A row given more tokens than its cache has slots returns NaN
          from then on.
        """
        x = self.embed(tokens) if tokens.ndim == 2 else tokens.astype(self.dtype)
        before = None if state is None else state.cache_position
        layout, after = layout_tokens(x.shape[0], x.shape[1], positions, segment_ids, before)
        layers = (None,) * self.config.num_layers if state is None else state.layers
        x, layers, tapped = self._layers(x, layers, layout, taps)
        hidden = self.final_norm(x)
        if after is not None:
            hidden = jnp.where(after.overflow[:, None, None], jnp.nan, hidden)
            state = DecodeState(layers, after)
        return Output(hidden, state, tapped)

    def _layers(
        self, x: Hidden, states: tuple[Any, ...], layout: TokenLayout, taps: bool
    ) -> tuple[Hidden, tuple[Any, ...], Tap | None]:
        layer = nn.remat(Layer, prevent_cse=not self.scan) if self.remat == "full" else Layer
        after, tapped = [], []
        for name, group in group_names(self.config, self.scan):
            fields = (self.config.mixers[group[0]], self.config, self.dtype, self.start, taps)
            own = [states[i] for i in group]
            if self.scan:
                stacked = jax.tree.map(lambda *s: jnp.stack(s), *own)
                scanned = _scanned(layer, len(group))(*fields, name=name)
                x, (stacked, tap) = scanned(x, stacked, layout)
                own = [jax.tree.map(lambda s, i=i: s[i], stacked) for i in range(len(group))]
            else:
                x, (own[0], tap) = layer(*fields, name=name)(x, own[0], layout)
                tap = jax.tree.map(lambda t: t[None], tap)
            after += own
            tapped.append(tap)
        joined = jax.tree.map(lambda *t: jnp.concatenate(t), *tapped) if taps else None
        return x, tuple(after), joined

    def logits(self, hidden: Hidden) -> Logits:
        """hidden @ head^T, float32: the softmax over a large vocabulary needs the full mantissa."""
        table = self.embed.embedding if self.config.tie_embeddings else self.head.kernel
        table = table.astype(self.dtype)
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        return logits if self.vocab_multiple == 1 else logits[..., : self.config.vocab_size]


def _scanned(layer: type[nn.Module], length: int) -> type[nn.Module]:
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=cast(Any, (0, nn.broadcast)),
        length=length,
        unroll=length if unroll_layers() else 1,
        metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )


def output_head(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits, without padding: the embedding itself where heads are tied."""
    table = params["embed"]["embedding"] if config.tie_embeddings else params["head"]["kernel"]
    return table if len(table) == config.vocab_size else table[: config.vocab_size]


def init_params(decoder: Decoder, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    plain = decoder.clone(vocab_multiple=1)
    start = lambda key: with_padding(nn.meta.unbox(_init(plain, key)), decoder.vocab_multiple)  # noqa: E731
    return jax.jit(start)(key)


def logical_axes(decoder: Decoder) -> Params:
    """The tree of `init_params` with a tuple of logical axis names in place of each array."""
    boxed = jax.eval_shape(lambda key: _init(decoder, key), jax.random.key(0))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=is_box)


def _init(decoder: Decoder, key: jax.Array) -> Params:
    # The head too, which `__call__` does not read.
    touch_all = lambda decoder, tokens: decoder.logits(decoder(tokens).hidden)  # noqa: E731
    return decoder.init(key, jnp.zeros((1, 1), jnp.int32), method=touch_all)["params"]


@left_to_compiler(activation_axes)
def decode_state(
    config: ModelConfig, batch: int, capacity: int, dtype: DTypeLike = jnp.bfloat16
) -> DecodeState:
    """The state before the first token, with capacity for this many tokens per row; see `cost.state_bytes`."""
    layers = tuple(spec.init_state(batch, capacity, dtype) for spec in config.mixers)
    return DecodeState(layers, start_position(batch, capacity))
