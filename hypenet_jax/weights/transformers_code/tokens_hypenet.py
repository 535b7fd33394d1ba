"""Which document a token belongs to, what it may read, and what was read before it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache


class HypeNetCache(Cache):
    """What was read: keys and values of softmax layers, the recurrent state of lightning layers, what is padding.

    Attributes:
      tensors: of every layer, rows first.
      segments: document of every token read, [row, token]; 0 is padding.
      next_position: of each row, if the open document goes on.
      single: no padding, and one document in every row.
    """

    is_compileable = False
    is_croppable = False  # a recurrent state cannot forget its last tokens

    def __init__(self) -> None:
        self.layers: list[Any] = []  # what transformers asks of its own caches is answered below
        self.reset()

    def reset(self) -> None:
        self.tensors: dict[int, tuple[Tensor, ...]] = {}
        self.segments: Tensor | None = None
        self.next_position: Tensor | None = None
        self.single = True

    def __len__(self) -> int:
        return len(self.tensors)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.segments is None else self.segments.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any) -> tuple[Tensor, ...]:
        if layer_idx in self.tensors:
            pairs = zip(self.tensors[layer_idx], (keys, values), strict=True)
            keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        self.tensors[layer_idx] = keys, values
        return keys, values

    def select(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Applies `rows`, which takes or repeats rows of an array, to all that is kept."""
        self.tensors = {i: tuple(map(rows, kept)) for i, kept in self.tensors.items()}
        if self.segments is not None and self.next_position is not None:
            self.segments, self.next_position = rows(self.segments), rows(self.next_position)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(lambda kept: kept.index_select(0, beam_idx.to(kept.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(lambda kept: kept.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(lambda kept: kept[indices])

    def crop(self, *_: Any) -> None:
        raise NotImplementedError("the state of a lightning layer cannot forget its last tokens")


def number_documents(
    mask: Tensor | None, position_ids: Tensor | None, x: Tensor, cache: HypeNetCache
) -> tuple[Tensor, Tensor, Tensor]:
    """Position and document of each new token, and the document that was open; the cache takes note of them."""
    (rows, time), device = x.shape[:2], x.device
    if mask is not None and (mask.ndim != 2 or mask.shape[1] < time):
        raise ValueError(f"attention_mask must be [{rows}, {time} or more], got {list(mask.shape)}")
    real = torch.ones(rows, time, dtype=torch.bool, device=device)
    real = real if mask is None else mask[:, -time:].to(device).bool()
    if cache.segments is None or cache.next_position is None:
        cache.segments = torch.zeros(rows, 0, dtype=torch.long, device=device)
        cache.next_position = open_segment = cache.segments.new_zeros(rows)
    else:
        open_segment = cache.segments.amax(1)
    going_on = cache.next_position[:, None]
    if position_ids is None:
        positions = going_on + real.cumsum(1) - real.long()
    else:
        positions = position_ids.to(device).expand(rows, time)
    latest = torch.where(real, torch.arange(time, device=device), -1).cummax(1).values
    previous = F.pad(latest[:, :-1], (1, 0), value=-1)
    after = lambda index: positions.gather(1, index.clamp(min=0)) + 1  # noqa: E731
    expected = torch.where(previous < 0, going_on, after(previous))
    starts = real & ((positions != expected) | ((previous < 0) & (open_segment == 0)[:, None]))
    segments = torch.where(real, open_segment[:, None] + starts.cumsum(1), 0)
    last = latest[:, -1:]
    cache.segments = torch.cat([cache.segments, segments], dim=1)
    cache.next_position = torch.where(last < 0, going_on, after(last))[:, 0]
    given = mask is not None or position_ids is not None
    cache.single = cache.single and not (given and bool((segments != 1).any()))
    return positions, segments, open_segment


def attention_mask(segments: Tensor, time: int, single: bool) -> Tensor | None:
    """Which of all tokens the last `time` ones read, [B, 1, T, S]; None: all before them and themselves.

    Padding reads padding, so that no softmax is empty.
    """
    count = segments.shape[1]
    if single and time in (1, count):
        return None
    index = torch.arange(count, device=segments.device)
    causal = (index <= index[-time:, None])[None, None]
    return causal if single else causal & (segments[:, -time:, None] == segments[:, None])[:, None]


@dataclasses.dataclass
class Tokens:
    """What all layers need to know of the tokens of a call.

    Attributes:
      segments: document of each, numbers that grow, 0 for padding; of one row for all where none differ.
      open_segment: the document that each row was in before.
      mask: [B, 1, T, S], true where a query may read a key; None leaves it to causality.
      factor: on the queries of softmax layers; 1 or [B, 1, T, 1].
      cos, sin: of the rotary positions, [B, 1, T, H / 2].
      slopes: of the decay of every lightning head, [N].
    """

    segments: Tensor
    open_segment: Tensor
    mask: Tensor | None
    factor: Tensor | float | None
    cos: Tensor
    sin: Tensor
    slopes: Tensor
