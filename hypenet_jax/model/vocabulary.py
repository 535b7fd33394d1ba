"""Tables of tokens with more rows than the vocabulary, so that a mesh can cut them whose axis does not divide it.

The rows beyond are zeros: no token reads them, logits of them are left out, so no gradient ever moves them.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from hypenet_jax.axes import Params

TABLES: Mapping[str, str] = {"embed": "embedding", "head": "kernel"}
"""The parameters with a row per token."""


def padded_rows(vocab_size: int, multiple: int) -> int:
    """The rows of a table: the next multiple."""
    return vocab_size + -vocab_size % multiple


def with_rows(table: Float[Array, "V D"], rows: int) -> Float[Array, "W D"]:
    """The table with rows of zeros after its own."""
    return jnp.pad(table, ((0, rows - len(table)), (0, 0)))


def with_padding(params: Params, multiple: int) -> Params:
    """The parameters with tables of `padded_rows`."""
    return _with_tables(params, lambda t: with_rows(t, padded_rows(len(t), multiple)))


def without_padding(params: Params, vocab_size: int) -> Params:
    """The parameters with one row per token."""
    return _with_tables(params, lambda table: table[:vocab_size])


def _with_tables(params: Params, change: Any) -> Params:
    changed = {n: {leaf: change(params[n][leaf])} for n, leaf in TABLES.items() if n in params}
    return {**params, **changed}
