"""CorpusConfig and DataConfig: which text is read, and in what rows and order."""

import dataclasses
import math

from hypenet_jax.data.sources import Conversations, Source
from hypenet_jax.data.synthetic import NeedleRows
from hypenet_jax.data.tokenizer import TokenizerFile, TrainedTokenizer

# Rows are shuffled among so many neighbouring blocks: those of one block are spread over batches.
WINDOW_BLOCKS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Text that is tokenised once and shared by all stages.

    Attributes:
      folder: of the prepared text.
      source: of the text, or of the conversations.
      tokenizer: an existing one, or how to train one; conversations need one with a chat template.
      block_length: tokens that are shuffled as one; a multiple of the context length of every stage, and of
        conversations the context length itself.
      heldout_fraction: probability that a document is held out of training.
      seed: decides which documents are held out.
      min_document_tokens: documents of fewer tokens, the end token included, are left out; 0 takes all.
    """

    folder: str
    source: Source | Conversations
    tokenizer: TokenizerFile | TrainedTokenizer
    block_length: int
    heldout_fraction: float
    seed: int
    min_document_tokens: int = 0

    def __post_init__(self):
        if self.min_document_tokens < 0:
            raise ValueError(
                f"min_document_tokens {self.min_document_tokens} is negative; 0 takes all documents"
            )
        if self.block_length < 2 or not 0.0 <= self.heldout_fraction < 1.0:
            raise ValueError(
                f"block_length {self.block_length} must be at least 2, heldout_fraction "
                f"{self.heldout_fraction} in [0, 1)"
            )
        if self.holds_conversations and not isinstance(self.tokenizer, TokenizerFile):
            raise ValueError(
                "conversations are read by the chat template of an existing tokenizer: name its TokenizerFile"
            )

    @property
    def holds_conversations(self) -> bool:
        """Whether the source is one of conversations, not of text."""
        return isinstance(self.source, Conversations)

    @property
    def window_tokens(self) -> int:
        """Tokens among which rows are shuffled; stages start at multiples of it."""
        return WINDOW_BLOCKS * self.block_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Rows of one stage.

    Attributes:
      corpus: the text.
      context_length: tokens of a row.
      sequences_per_step: rows of a global batch, over all hosts and micro-batches.
      first_token: offset into the shuffled text at which this stage starts: 0, or `tokens_after`
        of the stage before it.
      seed: of the order of rows and the needles; stages that share text must share it.
      reset_documents: True: one segment per document, so that documents of a row do not see each
        other. False: one segment per row, as published.
      join_below: neighbours in the corpus of which a row holds fewer tokens each than this share one segment; those of
        as many tokens or more keep one of their own. 0 joins none. So rows hold late positions whatever the documents:
        text of short ones is joined, and long ones, which reach far by themselves, stay apart. Documents that follow
        each other come from one file of the source, so they are the nearest to one text that there is.
      needles: questions with known answers, inserted in part of the rows.
      curriculum: (tokens, context length) of shorter rows that come before those of `context_length`, shortest first.
        A step has as many tokens at every length, so tokens are rounded up to whole steps; each length goes on in the
        text at the first whole shuffle window that none before it has read.
    """

    corpus: CorpusConfig
    context_length: int
    sequences_per_step: int
    first_token: int
    seed: int
    reset_documents: bool = True
    join_below: int = 0
    needles: NeedleRows | None = None
    curriculum: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.context_length < 2 or self.corpus.block_length % self.context_length:
            raise ValueError(
                f"context_length {self.context_length} must be at least 2 and divide block_length "
                f"{self.corpus.block_length}; change one of them"
            )
        if self.corpus.holds_conversations:
            self._check_conversations()
        if self.sequences_per_step < 1 or not 0 <= self.seed < 2**32:
            raise ValueError(
                f"sequences_per_step {self.sequences_per_step} must be at least 1, seed {self.seed} "
                "in [0, 2**32)"
            )
        if self.join_below < 0 or (self.join_below and not self.reset_documents):
            raise ValueError(
                f"join_below {self.join_below} must not be negative, and without reset_documents every row is joined "
                "already: leave one of them out"
            )
        window = self.corpus.window_tokens
        if self.first_token < 0 or self.first_token % window:
            below = max(0, self.first_token // window * window)
            raise ValueError(
                f"first_token {self.first_token} is not a multiple of the shuffle window of "
                f"{window} tokens; use {below} or {below + window}"
            )
        if self.needles is not None:
            self.needles.check(self.context_length)
        if self.curriculum:
            self._check_curriculum()

    @property
    def tokens_per_step(self) -> int:
        """Of a global batch, padding included; the same for all context lengths."""
        return self.sequences_per_step * self.context_length

    @property
    def phases(self) -> tuple["Phase", ...]:
        """The stage as parts of one context length each, in order; the last never ends."""
        made, first_batch, first_token = [], 0, self.first_token
        for tokens, length in (*self.curriculum, (0, self.context_length)):
            data = dataclasses.replace(
                self,
                context_length=length,
                sequences_per_step=self.tokens_per_step // length,
                first_token=first_token,
                curriculum=(),
            )
            made.append(Phase(first_batch, data))
            steps = math.ceil(tokens / self.tokens_per_step)
            first_batch += steps
            first_token = _whole_windows(data, steps)
        return tuple(made)

    def _check_curriculum(self) -> None:
        lengths = [*(length for _, length in self.curriculum), self.context_length]
        if sorted(set(lengths)) != lengths or any(self.context_length % n for n in lengths):
            raise ValueError(
                f"context lengths of curriculum {lengths[:-1]} must grow, stay below context_length "
                f"{self.context_length} and divide it; use powers of two"
            )
        if any(tokens < 1 for tokens, _ in self.curriculum):
            raise ValueError(f"curriculum {self.curriculum}: tokens must be above 0")
        if self.corpus.holds_conversations:
            raise ValueError("conversations lie in blocks of one length; leave curriculum out")
        _ = self.phases  # each is checked as a config of its own

    def _check_conversations(self) -> None:
        if self.context_length != self.corpus.block_length:
            raise ValueError(
                f"rows of {self.context_length} tokens would cut conversations, which are packed whole into blocks of "
                f"{self.corpus.block_length}; give the corpus this block_length, and a folder of its own"
            )
        if self.needles is not None:
            raise ValueError("needles are planted in text, not in conversations; leave needles out")
        if self.join_below:
            raise ValueError("conversations of a row stay apart; leave join_below out")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Consecutive batches of a stage that have rows of one length.

    Attributes:
      first_batch: number of the first of them.
      data: their rows, from its `first_token` on; its own curriculum is empty.
    """

    first_batch: int
    data: DataConfig


def tokens_after(config: DataConfig, steps: int) -> int:
    """`first_token` of a stage, of any context length, that follows `steps` steps of this one: the tokens read so far,
    rounded up to a whole shuffle window, so that no row is read by both.
    """
    phase = [phase for phase in config.phases if phase.first_batch <= steps][-1]
    return _whole_windows(phase.data, steps - phase.first_batch)


def _whole_windows(data: DataConfig, steps: int) -> int:
    window = data.corpus.window_tokens
    return math.ceil((data.first_token + steps * data.tokens_per_step) / window) * window
