"""The interface of a mixer: all that the rest of the project knows of one, as methods of its spec.

A mixer is one file that defines a spec, a state and a module, and one line in `MIXERS`; see docs/add_a_mixer.md.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from hypenet_jax.axes import Params
from hypenet_jax.model.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from hypenet_jax.model.mixers.softmax import SoftmaxSpec


@dataclasses.dataclass(frozen=True)
class Rule:
    """A parameter of ours, its path joined by "/", and its tensor in a Hugging Face checkpoint.

    Attributes:
      axes: "our axes -> their axes" in the letters of `hypenet_jax.axes`; parentheses merge neighbouring axes.
        "d n h -> (n h) d" merges heads and head width into rows and puts the model width last, as torch does; "()" is
        an axis of one.
      flag: the field of the mixer's spec that must be true for it to exist; None: always.
    """

    ours: str
    theirs: str
    axes: str
    flag: str | None = None


ATTENTION_RULES = (
    Rule("mixer/q/kernel", "self_attn.q_proj.weight", "d n h -> (n h) d"),
    Rule("mixer/k/kernel", "self_attn.k_proj.weight", "d k h -> (k h) d"),
    Rule("mixer/v/kernel", "self_attn.v_proj.weight", "d k h -> (k h) d"),
    Rule("mixer/o/kernel", "self_attn.o_proj.weight", "n h d -> d (n h)"),
    Rule("mixer/q/bias", "self_attn.q_proj.bias", "n h -> (n h)", "qkv_bias"),
    Rule("mixer/k/bias", "self_attn.k_proj.bias", "k h -> (k h)", "qkv_bias"),
    Rule("mixer/v/bias", "self_attn.v_proj.bias", "k h -> (k h)", "qkv_bias"),
    Rule("mixer/q_norm/scale", "self_attn.q_norm.weight", "h -> h", "qk_norm"),
    Rule("mixer/k_norm/scale", "self_attn.k_norm.weight", "h -> h", "qk_norm"),
)
"""What every mixer takes over from softmax attention: maps to and from the heads, their biases and norms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """How a mixer stands in a Hugging Face folder of model_type "hypenet".

    Attributes:
      kind: its name in `mixer_types` of config.json.
      tensors: its parameters, without the prefix of the layer ("layer_3/", "model.layers.3.").
      fields: of config.json: the field of the spec that each holds, and its type; numbers are positive. A bool for
        `rope_theta` says whether it has rotary positions, whose base all mixers share.
      own_fields: of ours beside the official format, each with the bool of the spec that it holds; one is absent where
        the spec has its default, so that the official code can read what it can compute.
      fixed: fields that must have this value where they stand, as nothing else is computed.
      ignored: fields that say nothing about the computation.
      in_transformers: whether the PyTorch code in `weights/transformers_code` computes it.
    """

    kind: str
    tensors: tuple[Rule, ...]
    fields: Mapping[str, tuple[str, type]]
    own_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    in_transformers: bool = False


def check_groups(num_heads: int, num_kv_heads: int) -> None:
    """Raises ValueError: query heads do not share key/value heads evenly."""
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")


def group_problems(fields: Mapping[str, Any], heads: str, kv_heads: str) -> Iterator[str]:
    """What is wrong with the fields of config.json that count query heads and key/value heads."""
    count, shared = fields.get(heads), fields.get(kv_heads)
    if isinstance(count, int) and isinstance(shared, int) and count % max(shared, 1):
        yield f"{heads} {count} is no multiple of {kv_heads} {shared}"


def rotary_problems(fields: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """What is wrong with the rotary positions of a mixer whose fields begin so and that has a head width of its own."""
    if fields.get(f"{prefix}_use_rope") and fields.get(f"{prefix}_head_dim") != fields.get(
        "head_dim"
    ):
        # The official rotary table has head_dim columns, whichever mixer reads it.
        yield f"{prefix}_head_dim differs from head_dim, which its rotary positions need"


class MixerState:
    """What a layer remembers between calls: a `flax.struct.dataclass` of arrays, rows first."""

    def with_capacity(self, capacity: int) -> "MixerState":
        """The same state with capacity for this many tokens; a state without a slot per token stays as it is."""
        return self

    def rewound(self, mark: "MixerState") -> "MixerState":
        """Back to an earlier state of the same text, of capacity 0: that one, but a cache, which keeps its slots."""
        return mark


class MixerSpec(abc.ABC):
    """The token mixer of a layer as a value; each kind is a frozen dataclass."""

    NAME: ClassVar[str]
    """In settings, for example `--mixer lightning`."""
    STATE_AXES: ClassVar[Mapping[str, tuple[str | None, ...]]]
    """Logical names of the axes of each array in its state; None is never sharded."""
    CHECKPOINT: ClassVar[CheckpointFormat]

    num_heads: int
    head_dim: int

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: `num_kv_heads`, where a mixer has that and it is set, else one per query head."""
        return getattr(self, "num_kv_heads", None) or self.num_heads

    @abc.abstractmethod
    def module(self, **fields: Any) -> nn.Module:
        """The Linen module, `(x, layout, state) -> (mixer(x), state)`; state None is the start, and returns None.

        Its fields: d_model, norm_eps, start (`Initialization`), dtype (of the computation) and name.
        """

    @abc.abstractmethod
    def init_state(self, batch: int, capacity: int, dtype: DTypeLike) -> MixerState:
        """The state before the first token, with capacity for this many tokens per row."""

    @abc.abstractmethod
    def mixing_flops(self, tokens: int, before: int) -> float:
        """FLOPs that mix this many tokens with each other and with the `before` others that they follow."""

    @abc.abstractmethod
    def state_bytes(self, capacity: int, itemsize: int) -> int:
        """Bytes of one row of `init_state`, by formula; `itemsize` is that of the computation's dtype."""

    def decode_bytes(self, length: int, itemsize: int) -> int:
        """Bytes of state read and written for the last token of a row of this length: all of it both, unless a mixer
        says otherwise."""
        return 2 * self.state_bytes(length, itemsize)

    @classmethod
    @abc.abstractmethod
    def from_softmax(cls, softmax: "SoftmaxSpec") -> "MixerSpec":
        """The mixer that replaces a teacher's softmax attention."""

    @abc.abstractmethod
    def params_from_softmax(self, params: Params, key: jax.Array) -> dict[str, Any]:
        """Its parameters from those, float32, of the softmax attention that it replaces; the key decides new ones."""

    @classmethod
    def from_hf(
        cls, fields: Mapping[str, Any], rope_theta: float, rope_scaling: RopeScaling | None
    ) -> "MixerSpec":
        """The spec that a checked config.json describes.

        rope_theta and rope_scaling are those of whatever has rotary positions; a mixer without a field `rope_scaling`
        raises TypeError where there is one.
        """
        values = {ours: fields[theirs] for theirs, (ours, _) in cls.CHECKPOINT.fields.items()}
        if "rope_theta" in values:
            rotary = values["rope_theta"]
            values["rope_theta"] = rope_theta if rotary else None
            values |= {"rope_scaling": rope_scaling} if rotary and rope_scaling is not None else {}
        own = cls.CHECKPOINT.own_fields
        values |= {ours: fields[theirs] for theirs, ours in own.items() if theirs in fields}
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Its fields of config.json."""
        values = {
            theirs: getattr(self, ours) is not None if ours == "rope_theta" else getattr(self, ours)
            for theirs, (ours, _) in self.CHECKPOINT.fields.items()
        }
        own = {
            theirs: getattr(self, ours)
            for theirs, ours in self.CHECKPOINT.own_fields.items()
            if getattr(self, ours) != getattr(type(self), ours)
        }
        return {**values, **own, **self.CHECKPOINT.fixed}

    @classmethod
    def hf_problems(cls, fields: Mapping[str, Any]) -> Iterator[str]:
        """What keeps it from being computed exactly, one sentence each, beyond what `CHECKPOINT` says."""
        return iter(())

    def axis_sizes(self) -> dict[str, int]:
        """Sizes of the axes that its `CHECKPOINT` names, by letter."""
        return {"n": self.num_heads, "k": self.kv_heads, "h": self.head_dim}

    def rules(self) -> list[Rule]:
        """Those of its `CHECKPOINT` whose parameter exists."""
        tensors = self.CHECKPOINT.tensors
        return [rule for rule in tensors if rule.flag is None or getattr(self, rule.flag)]

    def projection_flops(self, d_model: int) -> tuple[float, float]:
        """FLOPs per token of the products from the residual stream to the heads, and of those back: 2 per weight."""
        sizes = {**self.axis_sizes(), "d": d_model}
        rules = [rule for rule in self.rules() if rule.ours.endswith("/kernel")]
        kernels = [rule.axes.split(" -> ")[0].split() for rule in rules]
        inward, outward = (
            sum(
                2.0 * math.prod(sizes[a] for a in axes)
                for axes in kernels
                if (axes[-1] == "d") == back
            )
            for back in (False, True)
        )
        return inward, outward
