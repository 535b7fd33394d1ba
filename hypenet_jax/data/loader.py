"""This host's slice of the global batches, in an order that a single integer resumes.

In every epoch anew, the blocks of the prepared text are shuffled (a shorter one stays last), each is split into rows of
`context_length`, and rows are shuffled within windows of WINDOW_BLOCKS blocks. A stage reads consecutive rows from
`first_token`, a multiple of the window. If that is `tokens_after` of the stage before, no two stages read the same text
until the epoch ends, even at different context lengths: the order of blocks is the same for all. The phases of a
curriculum follow each other as stages do.

Every batch is a function of (config, batch number); the number of hosts only decides which of them loads which rows.
"""

import bisect
import dataclasses
import functools
import logging
from collections.abc import Iterator

import grain
import jax
import numpy as np
from jaxtyping import Int

from hypenet_jax.data.batch import Batch, Row, stack_rows
from hypenet_jax.data.config import WINDOW_BLOCKS, DataConfig
from hypenet_jax.data.prepared import Blocks, Prepared

# Grain wants lengths; this one is never reached, yet leaves room for products within 64 bits.
_ENDLESS = 1 << 60

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """Maps a row number, counted over all epochs, to (block, part of that block)."""

    num_tokens: int
    block_length: int
    context_length: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Rows per epoch."""
        return -(-self.num_tokens // self.context_length)

    @property
    def parts(self) -> int:
        """Rows per block."""
        return self.block_length // self.context_length

    def __call__(self, index: int) -> tuple[int, int]:
        epoch, row = divmod(index, self.num_rows)
        window, place = divmod(row, WINDOW_BLOCKS * self.parts)
        block, part = _window(self, epoch, window)[place]
        return int(block), int(part)


@functools.lru_cache(maxsize=16)
def _window(order: RowOrder, epoch: int, window: int) -> Int[np.ndarray, "n 2"]:
    """(block, part) of each row of one window, in the order they are read."""
    first = window * WINDOW_BLOCKS
    end = min((first + WINDOW_BLOCKS) * order.parts, order.num_rows)
    blocks, parts = np.divmod(np.arange(first * order.parts, end), order.parts)
    # Counted in tokens, not rows, so that all context lengths shuffle the same blocks alike.
    full = order.num_tokens // order.block_length
    shuffled = grain.MapDataset.range(max(full, 1)).shuffle(seed=(order.seed + epoch) % 2**32)
    names = [shuffled[b] if b < full else b for b in range(first, int(blocks[-1]) + 1)]
    table = np.stack([np.asarray(names, np.int64)[blocks - first], parts], axis=-1)
    # The one numpy stream whose numbers are promised never to change between versions.
    return np.random.RandomState([order.seed, epoch, window]).permutation(table)


def _read_row(
    blocks: Blocks, order: RowOrder, reset_documents: bool, join_below: int, index: int
) -> Row:
    return blocks.row(*order(index), order.context_length, reset_documents, join_below)


class Loader:
    """An endless iterator over this host's rows of the global batches, as numpy arrays.

    `position` is the number of the next global batch, the same on every host: save it, and set it
    to resume. The number of hosts may differ then; the global batches stay the same.
    """

    def __init__(self, batches: grain.MapDataset, batches_to_epoch_end: int):
        self._batches = batches
        self._batches_to_epoch_end = batches_to_epoch_end
        self.position = self._reached = 0
        self._iterator: grain.DatasetIterator | None = None
        self._warned = False

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None or self.position != self._reached:
            if self.position < 0:
                raise ValueError(f"position {self.position} is negative; batches count from 0")
            self.close()
            # More threads and batches only delay the first batch and use memory.
            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
            self._iterator = iter(self._batches[self.position :].to_iter_dataset(options))
        batch = next(self._iterator)
        if not self._warned and self.position >= self._batches_to_epoch_end:
            self._warned = True
            logger.warning(
                "all training text has been read at batch %d: from here rows repeat, reshuffled",
                self.position,
            )
        self.position = self._reached = self.position + 1
        return batch

    def read(self, number: int) -> Batch:
        """This host's rows of one global batch; `position` stays."""
        batch = self._batches[number]
        assert batch is not None  # grain's maps may leave elements out; ours do not
        return batch

    def close(self) -> None:
        """Stops prefetching."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def loader(config: DataConfig, prepared: Prepared, host: int = 0, hosts: int = 1) -> Loader:
    """Training batches of one stage: rows [host, host + 1) / hosts of every global batch.

    Raises:
      ValueError: the batch does not divide over the hosts, or the data was prepared for another
        config.
    """
    for phase in config.phases:
        _check(phase.data, prepared, host, hosts)
    parts = [_batches(phase.data, prepared, host, hosts) for phase in config.phases]
    if len(parts) == 1:
        return Loader(*parts[0])
    firsts = [phase.first_batch for phase in config.phases]
    read = functools.partial(_read_batch, firsts, [batches for batches, _ in parts])
    # Of the first phase that reaches the end, else of the last.
    ends = [first + end for first, (_, end) in zip(firsts, parts, strict=True)]
    within = (end for end, following in zip(ends, firsts[1:], strict=False) if end < following)
    return Loader(grain.MapDataset.range(_ENDLESS).map(read), next(within, ends[-1]))


def _batches(
    config: DataConfig, prepared: Prepared, host: int, hosts: int
) -> tuple[grain.MapDataset, int]:
    """Batches of one context length, and the number of them to the end of the epoch."""
    size, length = config.sequences_per_step, config.context_length
    order = RowOrder(prepared.num_tokens("train"), prepared.block_length, length, config.seed)
    joining = config.reset_documents, config.join_below
    read = functools.partial(_read_row, prepared.blocks("train"), order, *joining)
    rows = grain.MapDataset.range(_ENDLESS).map(read)
    if config.needles is not None:
        rows = rows.random_map(config.needles, seed=config.seed)
    first_row = config.first_token // length
    # Batches of one host's size, of which it takes every hosts-th: a host reads only its own rows,
    # and the global batch has the same rows in the same order for any number of hosts.
    batches = rows[first_row:].batch(size // hosts, batch_fn=stack_rows)[host::hosts]
    return batches, (order.num_rows - first_row % order.num_rows) // size


def _read_batch(firsts: list[int], parts: list[grain.MapDataset], number: int) -> Batch | None:
    """Batch of a number that counts over all phases, which begin at the numbers `firsts`."""
    part = bisect.bisect_right(firsts, number) - 1
    return parts[part][number - firsts[part]]


def heldout_batches(
    prepared: Prepared,
    context_length: int,
    sequences: int,
    reset_documents: bool,
    join_below: int = 0,
) -> Iterator[Batch]:
    """All held-out rows once, in stored order; the last batch is padded with empty rows."""
    blocks = prepared.blocks("heldout")
    parts, remainder = divmod(prepared.block_length, context_length)
    if prepared.holds_conversations and parts != 1:
        raise ValueError(
            f"rows of {context_length} tokens would cut the conversations of {prepared.folder}, which lie in blocks of "
            f"{prepared.block_length}; use rows of as many"
        )
    if remainder:
        raise ValueError(
            f"context_length {context_length} does not divide the blocks of "
            f"{prepared.block_length} tokens; use one that does"
        )
    num_rows = prepared.num_rows("heldout", context_length)
    for first in range(0, num_rows, sequences):
        numbers = range(first, min(first + sequences, num_rows))
        rows = [
            blocks.row(*divmod(n, parts), context_length, reset_documents, join_below)
            for n in numbers
        ]
        padding = jax.tree.map(np.zeros_like, rows[0])
        yield stack_rows(rows + [padding] * (sequences - len(rows)))


def _check(config: DataConfig, prepared: Prepared, host: int, hosts: int) -> None:
    if config.sequences_per_step % hosts or not 0 <= host < hosts:
        raise ValueError(
            f"{config.sequences_per_step} sequences per step do not divide over host {host} of "
            f"{hosts}; use a multiple of the number of hosts"
        )
    if prepared.block_length != config.corpus.block_length:
        raise ValueError(
            f"{prepared.folder} has blocks of {prepared.block_length}, the config says "
            f"{config.corpus.block_length}; prepare the data of this config"
        )
    if config.needles is not None:
        catalogue = config.needles.catalogue
        if catalogue.first_id + catalogue.num_ids > prepared.vocab_size:
            raise ValueError(
                f"the catalogue ends at id {catalogue.first_id + catalogue.num_ids - 1}, the "
                f"vocabulary has {prepared.vocab_size}; reserve catalogue.token_names() for it"
            )
