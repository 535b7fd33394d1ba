"""Text to batches: sources, tokenizer, packing, prepared folders, loader, texts with known
answers."""

from hypenet_jax.data.batch import Batch, Row, make_row, stack_rows
from hypenet_jax.data.config import CorpusConfig, DataConfig, tokens_after, window_tokens
from hypenet_jax.data.loader import Loader, heldout_batches, loader
from hypenet_jax.data.packing import PackedRow, pack
from hypenet_jax.data.prepare import prepare
from hypenet_jax.data.prepared import Prepared, Split, open_prepared
from hypenet_jax.data.sources import (
    Document,
    JsonLines,
    Parquet,
    Source,
    TextFiles,
    documents,
    standard_library,
)
from hypenet_jax.data.synthetic import Catalogue, NeedleQuestion, NeedleRows, needle_sequence
from hypenet_jax.data.tokenizer import (
    Tokenizer,
    TokenizerFile,
    TrainedTokenizer,
    load_tokenizer,
    make_tokenizer,
    train_tokenizer,
)

__all__ = [
    "Batch",
    "Catalogue",
    "CorpusConfig",
    "DataConfig",
    "Document",
    "JsonLines",
    "Loader",
    "NeedleQuestion",
    "NeedleRows",
    "PackedRow",
    "Parquet",
    "Prepared",
    "Row",
    "Source",
    "Split",
    "TextFiles",
    "Tokenizer",
    "TokenizerFile",
    "TrainedTokenizer",
    "documents",
    "heldout_batches",
    "load_tokenizer",
    "loader",
    "make_row",
    "make_tokenizer",
    "needle_sequence",
    "open_prepared",
    "pack",
    "prepare",
    "stack_rows",
    "standard_library",
    "tokens_after",
    "train_tokenizer",
    "window_tokens",
]
