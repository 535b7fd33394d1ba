"""Questions that need all of the text: which words are common in a list, and which are frequent in a coded text."""

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from hypenet_jax.evals.ruler.text import Haystacks, Piece, Question, distinct

# Words that come often in a list, and how many times they and all others come. In prompts of fewer than SHORT tokens
# (4096 with what may be written) there is room for fewer repetitions, as in RULER.
COMMON, OFTEN, SELDOM = 10, 30, 3
SHORT, SHORT_OFTEN, SHORT_SELDOM = 4096 - 120, 6, 1
LIST = "This is a numbered list in which some words come more often than others:"
WHICH = "\nWhich 10 words are the most common in the list above? The 10 most common words are:"

# The frequency of the word of rank r is proportional to r^-ALPHA; the vocabulary has one word for so many tokens.
ALPHA, TOKENS_PER_WORD = 2.0, 50


def common_words(
    haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
) -> Question:
    """A numbered list in which a few words come often and all others seldom. A solved example goes before."""
    often, seldom = (SHORT_OFTEN, SHORT_SELDOM) if length < SHORT else (OFTEN, SELDOM)
    # Each line takes two tokens at least: more words than these never fit.
    drawn = distinct("short word", 3 * COMMON + length // (2 * seldom), rng)
    example, words = drawn[: 2 * COMMON], drawn[2 * COMMON :]
    encode = haystacks.tokenizer.encode_all
    head, tail = encode([f"{_solved(example, rng)}\n\n{LIST}", WHICH])
    pieces = encode([f" {word}" for word in words])
    marks = encode([f" {i + 1}." for i in range(length // 2)])
    room = length - len(head) - len(tail)
    rare = _fitting(pieces, marks, room, often, seldom)
    counts = [often] * COMMON + [seldom] * rare
    order = rng.permutation(np.repeat(np.arange(COMMON + rare), counts))
    listed = [part for i, w in enumerate(order) for part in (marks[i], pieces[w])]
    tokens = np.concatenate([head, *listed, tail]).astype(np.int32)
    return Question(tokens, tuple(words[:COMMON]))


def _solved(example: list[str], rng: np.random.Generator) -> str:
    """The first half of these words comes three times, the other once."""
    shown = rng.permutation([*example[:COMMON] * 3, *example[COMMON:]])
    listed = " ".join(f"{i + 1}. {word}" for i, word in enumerate(shown))
    return f"{LIST} {listed}{WHICH} {' '.join(example[:COMMON])}"


def _fitting(
    pieces: Sequence[Piece], marks: Sequence[Piece], room: int, often: int, seldom: int
) -> int:
    """How many seldom words fit beside the common ones, the numbers of all lines counted."""
    sizes, numbered = np.asarray([*map(len, pieces)]), np.cumsum([*map(len, marks)])
    lines = often * COMMON + seldom * np.arange(1, len(sizes) - COMMON + 1) - 1
    lines = lines[lines < len(numbered)]
    rare = np.cumsum(sizes[COMMON:])[: len(lines)] * seldom
    fits = often * sizes[:COMMON].sum() + rare + numbered[lines] <= room
    if not fits.any():
        raise ValueError(
            f"{max(room, 0)} tokens have no room for {COMMON} words {often} times each; use a longer length"
        )
    return int(fits.sum())


def frequent_words(
    haystacks: Haystacks, length: int, depth: float, rng: np.random.Generator
) -> Question:
    """A text of coded words of falling frequencies: the first is dots, the answer is the next three."""
    words = ["...", *distinct("coded word", max(8, length // TOKENS_PER_WORD) - 1, rng)]
    head, tail, *pieces = haystacks.tokenizer.encode_all(
        [
            "Count how often each coded word comes in the following text; dots do not count.\n",
            "\nWhich three coded words are the most frequent in the text above? The three most frequent words are:",
            *(f" {word}" for word in words),
        ]
    )
    counts = _counts(np.asarray([*map(len, pieces)]), length - len(head) - len(tail))
    order = rng.permutation(np.repeat(np.arange(len(words)), counts))
    tokens = np.concatenate([head, *(pieces[i] for i in order), tail]).astype(np.int32)
    return Question(tokens, tuple(words[1:4]))


def _counts(sizes: Int[np.ndarray, " W"], room: int) -> Int[np.ndarray, " W"]:
    """How often each word comes in the longest text that fits."""
    shares = np.arange(1.0, len(sizes) + 1) ** -ALPHA
    shares /= shares.sum()
    tokens_of = lambda count: (np.floor(count * shares) * sizes).sum()  # noqa: E731
    longest = bisect.bisect(range(1, room), room, key=tokens_of)
    counts = np.floor(longest * shares).astype(np.int64)
    if counts[3] <= counts[4]:
        raise ValueError(
            f"{max(room, 0)} tokens are too few for three words to stand out from the others; use a longer length"
        )
    return counts
