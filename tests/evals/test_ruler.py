"""Questions in the manner of RULER: exact in length, answerable from their text, the same for every batch and again
from the disk.
"""

import re

import numpy as np
import pytest

from hypenet_jax.data.tokenizer import TrainedTokenizer, train_tokenizer
from hypenet_jax.evals.ruler.evaluator import RulerEvaluator
from hypenet_jax.evals.ruler.tasks import TASKS, match_all, questions
from hypenet_jax.evals.ruler.text import Haystacks, sentences_of

TEXT = "Code is data. Is data code? Words and words, 12345 67890!\nA line of its own\n" * 30
LENGTH = 2600


@pytest.fixture(scope="module")
def haystacks() -> Haystacks:
    tokenizer = train_tokenizer(
        [TEXT, "the secret number of is: One words list"], TrainedTokenizer(300)
    )
    return Haystacks(tokenizer, tokenizer.encode_all(sentences_of(TEXT)))


@pytest.fixture(scope="module")
def asked(haystacks):
    return {task: questions(task, haystacks, LENGTH, count=4, seed=0) for task in TASKS}


def test_a_text_is_cut_into_sentences_without_loss():
    parts = sentences_of(TEXT)
    assert "".join(parts) == TEXT
    assert parts[:4] == [
        "Code is data. ",
        "Is data code? ",
        "Words and words, 12345 67890!\n",
        "A line of its own\n",
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_question_and_its_budget_fill_the_length_and_never_exceed_it(haystacks, asked, task):
    longest = max(len(haystacks.tokenizer.encode(word)) for word in ("12345 67890", TEXT[:100]))
    for one in asked[task]:
        assert LENGTH - 300 - longest < len(one.tokens) + TASKS[task].budget <= LENGTH


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_stands_in_the_text_before_the_question(haystacks, asked, task):
    for one in asked[task]:
        text = haystacks.tokenizer.decode(one.tokens)
        assert all(answer in text for answer in one.answers)
        assert match_all(" and ".join(one.answers).upper(), one.answers) == 1.0


@pytest.mark.parametrize(
    ("task", "keys", "values"),
    [
        ("niah_single_1", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multivalue", 1, 4),
        ("niah_multiquery", 4, 1),
    ],
)
def test_so_many_needles_are_hidden_and_those_asked_for_are_the_answers(
    haystacks, asked, task, keys, values
):
    for one in asked[task]:
        text = haystacks.tokenizer.decode(one.tokens)
        stated = re.findall(r"One of the secret numbers of (\S+) is: (\d+)\.", text)
        assert len(stated) == keys * values
        question = text.rsplit("in the text above", 1)[0].rsplit("secret number", 1)[1]
        assert {v for k, v in stated if k in question} == set(one.answers)


def test_the_haystack_of_needles_states_other_values_of_other_keys(haystacks, asked):
    for task, number in (("niah_multikey_2", "numbers"), ("niah_multikey_3", "uuids")):
        (answer,) = asked[task][0].answers
        stated = re.findall(
            rf"secret {number} of (\S+) is: (\S+)\.",
            haystacks.tokenizer.decode(asked[task][0].tokens),
        )
        assert len(stated) > 10
        assert [value for _, value in stated].count(answer) == 1
        assert len({key for key, _ in stated}) == len(stated)


def test_depths_are_spread_evenly_and_deeper_needles_stand_later(haystacks, asked):
    made = asked["niah_single_1"]
    assert [one.depth for one in made] == [0.125, 0.375, 0.625, 0.875]
    texts = [haystacks.tokenizer.decode(one.tokens) for one in made]
    places = [text.index("One of the secret") / len(text) for text in texts]
    assert places == sorted(places)
    assert places[0] < 0.3 < 0.7 < places[-1]


def test_the_chain_hands_one_value_to_all_that_are_asked_for(haystacks, asked):
    one = asked["vt"][0]
    text = haystacks.tokenizer.decode(one.tokens)
    value = re.search(r"variables have the value (\d+):$", text).group(1)
    has = set()
    for name, before in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\n", text):
        if before == value or before in has:
            has.add(name)
    assert has == set(one.answers)
    assert len(has) == 5


def test_the_common_words_are_the_most_common(haystacks, asked):
    one = asked["cwe"][0]
    text = haystacks.tokenizer.decode(one.tokens).rsplit("others:", 1)[1]
    words = re.findall(r"\d+\. (\w+)", text)
    names, counts = np.unique(words, return_counts=True)
    common = set(names[np.argsort(-counts)[:10]])
    assert common == set(one.answers)
    assert sorted(counts)[-10:] == [6] * 10
    assert sorted(counts)[-11] == 1


def test_the_frequent_words_follow_the_dots_in_frequency(haystacks, asked):
    one = asked["fwe"][0]
    text = haystacks.tokenizer.decode(one.tokens).split("count.", 1)[-1]
    names, counts = np.unique(re.findall(r" ([a-z]{6}|\.\.\.)(?= |\n)", text), return_counts=True)
    ranked = [str(names[i]) for i in np.argsort(-counts)]
    assert ranked[0] == "..."
    assert set(ranked[1:4]) == set(one.answers)


def test_a_question_depends_on_its_seed_and_not_on_how_many_there_are(haystacks):
    few, many = (questions("niah_multikey_1", haystacks, 1200, count=n, seed=3) for n in (1, 3))
    other = questions("niah_multikey_1", haystacks, 1200, count=1, seed=4)
    assert few[0].answers == many[0].answers
    assert few[0].answers != other[0].answers


def test_questions_come_back_from_the_disk_and_damaged_ones_are_made_again(haystacks, tmp_path):
    def ask():
        return RulerEvaluator(samples=2, cache=str(tmp_path)).questions(
            "niah_single_3", haystacks, 900, seed=0
        )

    made = ask()
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = ask()
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"not an archive")
    for found in (again, ask()):
        for one, other in zip(made, found, strict=True):
            assert np.array_equal(one.tokens, other.tokens)
            assert (one.answers, one.depth) == (other.answers, other.depth)


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("niah_single_1", 200, "no room for a haystack"),
        ("cwe", 700, "no room for 10 words"),
        ("fwe", 150, "too few"),
    ],
)
def test_what_does_not_fit_is_refused(haystacks, task, length, message):
    with pytest.raises(ValueError, match=message):
        questions(task, haystacks, length, count=1, seed=0)
