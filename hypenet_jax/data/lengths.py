"""How long documents are, and how far from the start of their segment the tokens of rows stand."""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hypenet_jax.data.batch import Batch

FIRST_DOUBLING = 512
MOST_COUNTED = 1 << 21  # tokens whose positions are counted: shares hold to a per cent

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class DocumentLengths:
    """Counts of documents and of their tokens by length, in classes [2^k, 2^(k+1)) that are named by 2^k.

    Attributes:
      longest: tokens of the longest document; 0 where there is none.
    """

    longest: int = 0
    documents: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    tokens: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def add(self, length: int) -> None:
        """Counts a document of so many tokens."""
        power = 1 << (length.bit_length() - 1)
        self.documents[power] += 1
        self.tokens[power] += length
        self.longest = max(self.longest, length)

    def as_json(self) -> dict[str, Any]:
        """{"longest": ..., "documents": {"512": ...}, "tokens": {"512": ...}}, shortest first."""
        counted = {"documents": self.documents, "tokens": self.tokens}
        by_power = {
            name: {str(power): count[power] for power in sorted(count)}
            for name, count in counted.items()
        }
        return {"longest": self.longest, **by_power}


def counts_in_words(counts: Mapping[str, Any]) -> str:
    """What the manifest says of a split, and which share of its tokens lies in documents of at least 512, 1024, ..."""
    words = [f"{number:,} {name}" for name, number in counts.items() if isinstance(number, int)]
    if left_out := counts.get("left_out", {}).get("documents"):
        words.append(f"{sum(left_out.values()):,} shorter documents left out")
    lengths = counts["lengths"]
    tokens = {int(power): number for power, number in lengths["tokens"].items()}
    for bound in doublings(lengths["longest"] + 1):
        share = sum(n for power, n in tokens.items() if power >= bound) / sum(tokens.values())
        words.append(f"{100 * share:.3g} % in documents of {bound:,} tokens or more")
    return ", ".join(words)


def shares_past(batches: Iterable[Batch], context_length: int) -> dict[int, float]:
    """Share of the tokens, without padding, with at least 512, 1024, ... earlier tokens in their segment.

    Args:
      context_length: of the longest row; the last doubling is below it.
    """
    bounds, total = doublings(context_length), 0
    past = np.zeros(len(bounds), np.int64)
    for batch in batches:
        total += np.count_nonzero(batch.segment_ids)
        past += [np.count_nonzero(np.asarray(batch.positions) >= bound) for bound in bounds]
    return {bound: int(n) / max(total, 1) for bound, n in zip(bounds, past, strict=True)}


def log_positions(
    stage: str, context_length: int, read: Callable[[int], Batch], numbers: range
) -> None:
    """Says which share of the tokens of a stage's batches stands past each doubling; nothing of rows up to 512.

    Counted in batches at equal distances that hold about MOST_COUNTED tokens, or in all.
    """
    if not len(numbers) or not doublings(context_length):
        return
    distance = max(1, len(numbers) * read(numbers[0]).tokens.size // MOST_COUNTED)
    counted = numbers[::distance]
    shares = shares_past(map(read, counted), context_length)
    words = ", ".join(f"{100 * share:.3g} % past {bound:,}" for bound, share in shares.items())
    sample = f"{len(counted)} of {len(numbers)} batches"
    logger.info("%s: of its tokens, %s (counted in %s)", stage, words, sample)


def doublings(end: int) -> list[int]:
    """512, 1024, ... below `end`."""
    powers = range(FIRST_DOUBLING.bit_length() - 1, max(end - 1, 0).bit_length())
    return [1 << power for power in powers]
