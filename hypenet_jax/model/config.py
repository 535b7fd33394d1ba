"""The architecture as a value: widths, and one mixer per layer."""

import dataclasses
import itertools

from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec, check_listed, mixer_kind


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model: teacher and student differ in their mixers alone.

    Attributes:
      vocab_size: rows of the embedding (V).
      d_model: width of the residual stream (D).
      d_mlp: width of the gated MLP (F).
      mixers: one spec per layer (L), each of a kind in `MIXERS`.
      tie_embeddings: the output head is the embedding.
    """

    vocab_size: int
    d_model: int
    d_mlp: int
    mixers: tuple[MixerSpec, ...]
    tie_embeddings: bool
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_listed(self.mixers)

    @property
    def num_layers(self) -> int:
        return len(self.mixers)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        return tuple(i for i, spec in enumerate(self.mixers) if isinstance(spec, SoftmaxSpec))

    @property
    def layer_groups(self) -> tuple[range, ...]:
        """Maximal ranges of neighbouring layers with equal mixers; each is one scan over stacked parameters."""
        groups = itertools.groupby(range(self.num_layers), self.mixers.__getitem__)
        layers = [tuple(group) for _, group in groups]
        return tuple(range(group[0], group[-1] + 1) for group in layers)


def with_logit_scale(config: ModelConfig, scale: LogLengthScale | float | None) -> ModelConfig:
    """The same model with another factor on the logits of its softmax layers."""
    mixers = tuple(
        dataclasses.replace(spec, logit_scale=scale) if isinstance(spec, SoftmaxSpec) else spec
        for spec in config.mixers
    )
    return dataclasses.replace(config, mixers=mixers)


def hypenet(
    teacher: ModelConfig,
    softmax_layers: tuple[int, ...],
    *,
    mixer: str = "lightning",
    rope_in_softmax: bool = False,
) -> ModelConfig:
    """The student of `teacher`: the named layers keep softmax attention, all others get another mixer.

    Kept layers lose their rotary positions (NoPE) and gain an output gate.

    Args:
      softmax_layers: indices that keep softmax attention, in any order.
      mixer: `NAME` of the mixer of the other layers, one of `MIXERS`.
      rope_in_softmax: keep the rotary positions there too (a control that shows what HyPE is for).
    Raises:
      ValueError: indices out of range or named twice, an unknown mixer, a teacher not all softmax with positions.
    Source: arXiv 2601.22156, section on HypeNet; flags of the published configurations.
    """
    outside = [i for i in softmax_layers if not 0 <= i < teacher.num_layers]
    if outside or len(set(softmax_layers)) != len(softmax_layers):
        raise ValueError(
            f"softmax_layers {softmax_layers} must be distinct indices from 0 to {teacher.num_layers - 1}"
        )
    kind, mixers = mixer_kind(mixer), []
    for i, spec in enumerate(teacher.mixers):
        keeps = i in softmax_layers
        if not isinstance(spec, SoftmaxSpec) or (spec.rope_theta is None and not keeps):
            raise ValueError(
                f"layer {i} of the teacher is not softmax attention with rotary positions: {spec}"
            )
        rope = spec.rope_theta if rope_in_softmax else None
        kept = dataclasses.replace(SoftmaxSpec.from_softmax(spec), rope_theta=rope)
        mixers.append(kept if keeps else kind.from_softmax(spec))
    return dataclasses.replace(teacher, mixers=tuple(mixers))
