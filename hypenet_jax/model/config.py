"""The architecture as a value: widths, and one mixer per layer."""

import dataclasses
import itertools
from typing import Any, cast

from hypenet_jax.model.hype import LogLengthScale
from hypenet_jax.model.mixers import MixerSpec, SoftmaxSpec, check_listed, mixer_kind
from hypenet_jax.model.rope_scaling import RopeScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
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


def with_rope_scaling(config: ModelConfig, scaling: RopeScaling | None) -> ModelConfig:
    """The same model with other frequencies in the layers that have rotary positions; None is as they were trained.

    Raises:
      ValueError: no layer has rotary positions.
    """
    mixers: list[Any] = list(config.mixers)
    rotary = [i for i, spec in enumerate(mixers) if getattr(spec, "rope_theta", None) is not None]
    if not rotary:
        raise ValueError(f"no layer has rotary positions for {scaling} to scale")
    for i in rotary:
        mixers[i] = dataclasses.replace(mixers[i], rope_scaling=scaling)
    return dataclasses.replace(config, mixers=tuple(mixers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerOptions:
    """What the mixers of a student have; None, which is the default, is what those of the published models have.

    Attributes:
      rope: rotary positions, those of the teacher. Published: in recurrent mixers, not in softmax attention (HyPE).
      qk_norm: RMS norm of every head's queries and keys; starts as the teacher's, or at one. Published: in recurrent
        mixers, and in softmax attention where the teacher has it.
      output_gate: multiply the outputs of the heads by sigmoid(W x), x the mixer's input. Published: in both.
      expand_kv: each of the teacher's key/value heads once for every query head that reads it. Published: in recurrent
        mixers, not in softmax attention.
    """

    rope: bool | None = None
    qk_norm: bool | None = None
    output_gate: bool | None = None
    expand_kv: bool | None = None

    def spec(self, kind: type[MixerSpec], softmax: SoftmaxSpec) -> MixerSpec:
        """The mixer of this kind that replaces a teacher's softmax attention.

        Raises:
          ValueError: the mixer cannot have what is asked for, or the teacher has no rotary positions.
        """
        spec, changes = kind.from_softmax(softmax), self._changes(softmax)
        # A gate without a field of its own may be there always: that it is wanted off counts too.
        lacking = [
            name
            for name, value in changes.items()
            if (value or name == "output_gate") and not hasattr(spec, name)
        ]
        if lacking:
            raise ValueError(f"the mixer {kind.NAME} has no {', '.join(lacking)}: leave it out")
        known = {name: value for name, value in changes.items() if hasattr(spec, name)}
        return dataclasses.replace(cast(Any, spec), **known)

    def _changes(self, softmax: SoftmaxSpec) -> dict[str, Any]:
        """Fields of specs."""
        names = [name for name in ("qk_norm", "output_gate") if getattr(self, name) is not None]
        changes: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.rope and softmax.rope_theta is None:
            raise ValueError("rope: a layer of the teacher has no rotary positions to take over")
        if self.rope is not None:
            source = softmax if self.rope else softmax.without_positions()
            changes |= {"rope_theta": source.rope_theta, "rope_scaling": source.rope_scaling}
        if self.expand_kv is not None:
            changes["num_kv_heads"] = softmax.num_heads if self.expand_kv else softmax.num_kv_heads
        return changes


AS_PUBLISHED = MixerOptions()


def hypenet(
    teacher: ModelConfig,
    softmax_layers: tuple[int, ...],
    *,
    mixer: str = "lightning",
    recurrent: MixerOptions = AS_PUBLISHED,
    softmax: MixerOptions = AS_PUBLISHED,
    tie_embeddings: bool | None = None,
) -> ModelConfig:
    """The student of `teacher`: the named layers keep softmax attention, all others get another mixer.

    Kept layers lose their rotary positions (NoPE) and gain an output gate, unless options say otherwise.

    Args:
      softmax_layers: indices that keep softmax attention, in any order.
      mixer: `NAME` of the mixer of the other layers, one of `MIXERS`.
      recurrent: options of that mixer.
      softmax: options of the layers that keep softmax attention.
      tie_embeddings: whether the output head is the embedding; None: as the teacher's.
    Raises:
      ValueError: indices out of range or named twice, options that a mixer cannot have, or what `aligned_spec` refuses.
    Source: arXiv 2601.22156, section on HypeNet; flags of the published configurations.
    """
    outside = [i for i in softmax_layers if not 0 <= i < teacher.num_layers]
    if outside or len(set(softmax_layers)) != len(softmax_layers):
        raise ValueError(
            f"softmax_layers {softmax_layers} must be distinct indices from 0 to {teacher.num_layers - 1}"
        )
    mixers = [aligned_spec(teacher, mixer, recurrent)] * teacher.num_layers
    for i in softmax_layers:
        mixers[i] = softmax.spec(SoftmaxSpec, cast(SoftmaxSpec, teacher.mixers[i]))
    tied = teacher.tie_embeddings if tie_embeddings is None else tie_embeddings
    return dataclasses.replace(teacher, mixers=tuple(mixers), tie_embeddings=tied)


def aligned_spec(
    teacher: ModelConfig, mixer: str = "lightning", options: MixerOptions = AS_PUBLISHED
) -> MixerSpec:
    """The mixer that stands in for any layer of this teacher, in stage 1 and in the student.

    One for all: stage 1 stacks them, and config.json has fields for one. A layer of the teacher without rotary
    positions (every fourth of SmolLM3) gets the same, with the positions of the others: HyPE has them in every
    recurrent layer.

    Args:
      mixer: its `NAME` in `MIXERS`.
      options: what it has.
    Raises:
      ValueError: an unknown mixer, options that it cannot have, or layers that are not softmax attention, equal but for
        their positions.
    """
    kind, softmax = mixer_kind(mixer), set()
    for i, spec in enumerate(teacher.mixers):
        if not isinstance(spec, SoftmaxSpec):
            raise ValueError(f"layer {i} of the teacher is not softmax attention: {spec}")
        softmax.add(spec)
    rotary = [spec for spec in softmax if spec.rope_theta is not None]
    if len(rotary) != 1 or softmax - {rotary[0], rotary[0].without_positions()}:
        raise ValueError(
            "a student needs a teacher of equal softmax layers with rotary positions (some may lack them), not "
            f"{softmax}"
        )
    return options.spec(kind, rotary[0])
