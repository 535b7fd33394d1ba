import dataclasses

import pytest

from hypenet_jax.data.config import DataConfig, tokens_after
from hypenet_jax.data.sources import Conversations
from hypenet_jax.data.synthetic import Catalogue, NeedleRows
from hypenet_jax.data.tokenizer import TokenizerFile


@pytest.fixture
def config(corpus):
    return DataConfig(corpus=corpus, context_length=16, sequences_per_step=4, first_token=0, seed=0)


def test_the_next_stage_begins_at_the_first_window_nobody_has_touched(config):
    window = config.corpus.window_tokens
    assert tokens_after(config, 0) == 0
    assert tokens_after(config, 1) == window
    assert tokens_after(config, window // 64) == window
    assert tokens_after(config, window // 64 + 1) == 2 * window
    later = dataclasses.replace(config, first_token=window, context_length=32)
    assert tokens_after(later, 1) == 2 * window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 12}, "divide block_length 32"),
        ({"context_length": 1}, "at least 2"),
        ({"sequences_per_step": 0}, "sequences_per_step 0"),
        ({"seed": -1}, "seed -1"),
        ({"first_token": 100}, "use 0 or 2048"),
        ({"needles": NeedleRows(Catalogue(300), 1.0, 2, 4, 4)}, "need rows of 27 tokens, not 16"),
    ],
)
def test_values_that_cannot_work_are_refused_with_what_would(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize("changes", [{"block_length": 1}, {"heldout_fraction": 1.0}])
def test_a_corpus_of_nothing_is_refused(corpus, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(corpus, **changes)


def test_conversations_need_rows_of_whole_blocks_a_chat_template_and_no_needles(corpus):
    chats = Conversations("chats", ("*.jsonl",))
    with pytest.raises(ValueError, match="chat template of an existing tokenizer"):
        dataclasses.replace(corpus, source=chats)
    corpus = dataclasses.replace(corpus, source=chats, tokenizer=TokenizerFile("teacher"))
    rows = {"corpus": corpus, "sequences_per_step": 4, "first_token": 0, "seed": 0}
    assert DataConfig(context_length=32, **rows).corpus is corpus
    with pytest.raises(ValueError, match="rows of 16 tokens would cut conversations"):
        DataConfig(context_length=16, **rows)
    with pytest.raises(ValueError, match="not in conversations; leave needles out"):
        DataConfig(context_length=32, needles=NeedleRows(Catalogue(300), 1.0, 1, 1, 1), **rows)
