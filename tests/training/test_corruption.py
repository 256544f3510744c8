"""Spoiled sentences: none is a known one, each way does what its name says, and any text at all may come."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.normalization import normalise
from tasks.training import corruption as spoiling
from tasks.training.corruption import CORRUPTIONS, Corruption, corrupt, with_corruptions

unhurried = settings(deadline=None)  # slow is not wrong

SENTENCES = [
    "the old cat likes the red bird .",
    "a child hears the small dogs today .",
    "the dog follows a liked child , quietly .",
    "our friends wo n't buy this analysis .",
]
FOUR = "alpha beta gamma delta ."
ODD = [
    "मैं यह किताब पढ़ रहा हूँ ।",
    "मैं यह किताब पढ़ रहा हूँ।",
    "я вижу красную кошку , да .",
    "l' été à Zürich était très çhaud !",
    "l' ete\u0301 a\u0300 Zu\u0308rich e\u0301tait tre\u0300s chaud !",
    "我 喜欢 这 本 书 。",
    "๑ ๒ ๓ ๔",
    "🐈 👍 🐕 🐦 .",
    "x 🐈 y 👍 z",
    "اقرأ هذا الكتاب الآن ؟",
]
TOO_SHORT = [
    [],
    [""],
    ["  \t "],
    ["."],
    ["yes", "no ."],
    ["Stop it !", "Stop it!"],
    ["我喜欢这本书。", "今天天气很好。"],
]

words = st.one_of(
    st.sampled_from(["the", "a", "cat", "cats", "Cat", "dog.", ".", ",", "?!", "'s", "(x)", "été", "मैं", "我喜欢", "ß"]),
    st.text(max_size=6),
)
texts = st.lists(words, max_size=10).map(" ".join)


def spoiled_by(way: Corruption, *sentences: str, count: int = 100) -> list[str]:
    """Spoil in one way only; so many tries find all that there is where there is little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoiling, "WAYS", (way,))
        return corrupt(sentences, sentences, count, 0)


def frame(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["sentence", "label"])


def moved(size: int) -> set[str]:
    """Return what moving so many neighbours of four words together gives."""
    *given, end = FOUR.split()
    found = set()
    for start in range(len(given) - size + 1):
        rest = given[:start] + given[start + size :]
        found |= {" ".join([*rest[:at], *given[start : start + size], *rest[at:], end]) for at in range(len(rest) + 1)}
    return found - {FOUR}


# Whatever the sentences are


@unhurried
@given(st.lists(texts, max_size=5), st.lists(texts, max_size=3), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_spoiled_sentences_are_no_more_than_wanted_all_different_and_none_is_known(
    sentences: list[str], others: list[str], count: int, seed: int
) -> None:
    found = corrupt(sentences, sentences + others, count, seed)
    folded = [normalise(text) for text in found]
    assert len(found) <= count
    assert len(set(folded)) == len(found)
    assert not set(folded) & {normalise(text) for text in sentences + others}
    assert corrupt(sentences, sentences + others, count, seed) == found


@unhurried
@given(st.lists(texts, max_size=5), st.integers(0, 2**32 - 1))
def test_spoiled_sentences_are_made_of_what_the_sentences_are_made_of(sentences: list[str], seed: int) -> None:
    letters = set("".join(sentences)) | {" "}
    assert set("".join(corrupt(sentences, [], 20, seed))) <= letters


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_one_seed_gives_one_list_and_another_seed_another(seed: int) -> None:
    found = corrupt(SENTENCES, SENTENCES, 50, seed)
    assert len(found) == 50
    assert corrupt(SENTENCES, SENTENCES, 50, seed) == found
    assert len(set(found) & set(corrupt(SENTENCES, SENTENCES, 50, seed // 2 + 1))) < 40


def test_as_many_come_as_are_wanted_where_the_sentences_suffice() -> None:
    assert [len(corrupt(SENTENCES, SENTENCES, count, 1)) for count in (0, 1, 2, 30, 400)] == [0, 1, 2, 30, 400]


def test_every_sentence_is_spoiled() -> None:
    found = " ".join(corrupt(SENTENCES, SENTENCES, 100, 1)).split()
    assert set(found) >= set(" ".join(SENTENCES).split())


@pytest.mark.parametrize("sentences", TOO_SHORT, ids=str)
@pytest.mark.parametrize("way", dict.fromkeys(CORRUPTIONS), ids=lambda way: way.__name__)
def test_sentences_of_less_than_three_words_cannot_be_spoiled(way: Corruption, sentences: list[str]) -> None:
    assert spoiled_by(way, *sentences) == []


@pytest.mark.parametrize("way", dict.fromkeys(CORRUPTIONS), ids=lambda way: way.__name__)
def test_punctuation_alone_stays_punctuation(way: Corruption) -> None:
    """Such data have no small words and no forms."""
    for text in spoiled_by(way, "! ! ! !", "? ? ? , . ", "... --- ... ?!"):
        assert set(text) <= set("!?,.- ")


@pytest.mark.parametrize("sentence", ODD)
@pytest.mark.parametrize("way", dict.fromkeys(CORRUPTIONS), ids=lambda way: way.__name__)
def test_no_way_takes_letters_of_any_script_apart(way: Corruption, sentence: str) -> None:
    others = ["alpha beta gamma delta", sentence]
    known = {word for text in others for word in text.removesuffix("।").split()}
    for text in spoiled_by(way, *others):
        assert set(text.removesuffix("।").split()) <= known


# What ends a sentence


@pytest.mark.parametrize("end", [" .", " ?", ".", "!", "?!", " ...", "...", '."', " 。", "。", " ।", "।", ""])
@pytest.mark.parametrize("way", dict.fromkeys(CORRUPTIONS), ids=lambda way: way.__name__)
def test_final_punctuation_stays_where_it_is(way: Corruption, end: str) -> None:
    """Otherwise a stop amid a sentence would give away that it is spoiled."""
    found = spoiled_by(way, f"alpha alphas gamma delta five six{end}", f"one two three four zeta{end}")
    if way is not spoiling._swap_distant:  # where words are few, all of them are small
        assert found
    for text in found:
        assert text.endswith(end)
        assert all(word.isalpha() for word in text.removesuffix(end).split())


def test_a_splice_ends_as_the_sentence_that_it_begins_as() -> None:
    found = spoiled_by(spoiling._splice, "alpha beta gamma!", "one two three ?")
    assert {text for text in found if text.startswith("alpha")} == {
        f"alpha beta {rest}!" for rest in ("two three", "three", "beta gamma")
    }
    assert {text for text in found if text.startswith("one")} == {
        f"one two {rest} ?" for rest in ("beta gamma", "gamma", "two three")
    }


# The ways


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (
            spoiling._swap_neighbours,
            {"beta alpha gamma delta .", "alpha gamma beta delta .", "alpha beta delta gamma ."},
        ),
        (
            spoiling._drop_word,
            {"beta gamma delta .", "alpha gamma delta .", "alpha beta delta .", "alpha beta gamma ."},
        ),
        (spoiling._drop_span, {"alpha beta .", "alpha delta .", "gamma delta .", "alpha .", "delta ."}),
        (spoiling._move_word, moved(1)),
        (spoiling._move_span, moved(2) | moved(3)),
        (
            spoiling._change_function_word,
            {
                " ".join([*FOUR.split()[:at], word, *FOUR.split()[at + 1 :]])
                for at in range(4)
                for word in FOUR.split()[:4]
            }
            - {FOUR},
        ),
        (
            spoiling._insert_function_word,
            {" ".join([*FOUR.split()[:at], word, *FOUR.split()[at:]]) for at in range(5) for word in FOUR.split()[:4]},
        ),
        (spoiling._change_form, set()),
        (spoiling._swap_distant, set()),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_way_gives_these_of_four_words_and_no_others(way: Corruption, expected: set[str]) -> None:
    found = spoiled_by(way, FOUR)
    assert set(found) == expected
    assert len(found) == len(expected)


@unhurried
@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "the", ",", "été"]), min_size=3, max_size=8))
@pytest.mark.parametrize(
    ("way", "less", "more"),
    [
        (spoiling._swap_neighbours, (0, 0), (0, 0)),
        (spoiling._swap_distant, (0, 0), (0, 0)),
        (spoiling._move_word, (0, 0), (0, 0)),
        (spoiling._move_span, (0, 0), (0, 0)),
        (spoiling._drop_word, (1, 1), (0, 0)),
        (spoiling._drop_span, (2, 3), (0, 0)),
        (spoiling._insert_function_word, (0, 0), (1, 1)),
        (spoiling._change_function_word, (1, 1), (1, 1)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_way_takes_away_and_adds_so_many_words(
    way: Corruption, less: tuple[int, int], more: tuple[int, int], drawn: list[str]
) -> None:
    before = Counter(drawn)
    for text in spoiled_by(way, " ".join([*drawn, "."]), count=5):
        after = Counter(text.split()[:-1])
        assert less[0] <= (before - after).total() <= less[1]
        assert more[0] <= (after - before).total() <= more[1]


def test_words_that_are_far_apart_are_swapped_only_if_they_are_not_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoiling, "SMALL_WORDS", 1)
    assert set(spoiled_by(spoiling._swap_distant, "the cat , the dog sees .")) == {
        "the dog , the cat sees .",
        "the sees , the dog cat .",
        "the cat , the sees dog .",
    }


def test_small_words_are_the_most_frequent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoiling, "SMALL_WORDS", 2)
    frequent = ["the cat , a dog .", "a bird , the fox ."]
    assert set(spoiled_by(spoiling._change_function_word, *frequent)) == {
        "a cat , a dog .",
        "the cat , the dog .",
        "the bird , the fox .",
        "a bird , a fox .",
    }
    assert {normalise(text) for text in spoiled_by(spoiling._insert_function_word, *frequent)} == {
        normalise(" ".join([*source.split()[:at], word, *source.split()[at:]]))
        for source in frequent
        for at in range(6)
        for word in ("the", "a")
    }


def test_a_word_changes_to_what_differs_in_its_ending_alone() -> None:
    found = spoiled_by(spoiling._change_form, "she walks here now .", "one walked often .", "two walkways ended .")
    assert set(found) == {"she walked here now .", "one walks often ."}


@unhurried
@given(st.lists(st.text("abcé", min_size=1, max_size=9), min_size=3, max_size=12, unique=True))
def test_forms_share_their_stem_and_differ_in_few_letters(drawn: list[str]) -> None:
    for text in spoiled_by(spoiling._change_form, " ".join(drawn), count=10):
        ((old, new),) = [pair for pair in zip(drawn, text.split(), strict=True) if pair[0] != pair[1]]
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))))
        assert shared >= spoiling.STEM
        assert max(len(old), len(new)) - shared <= spoiling.ENDING
        assert new in drawn


# With the sentences themselves

ROWS = frame(*((sentence, 1) for sentence in SENTENCES), ("wrongly cat the dog wrongly likes .", 0))


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_there_are_as_many_spoiled_ones_as_acceptable_ones(copies: int) -> None:
    found = with_corruptions(ROWS, copies, 3)
    assert list(found.columns) == ["sentence", "label"]
    assert found["label"].tolist() == [1] * 4 * copies + [0] * 4 * copies
    assert found["label"].dtype == np.int64
    assert found.loc[found["label"] == 1, "sentence"].tolist() == SENTENCES * copies
    assert not set(found.loc[found["label"] == 0, "sentence"]) & set(ROWS["sentence"])


def test_only_acceptable_sentences_are_spoiled() -> None:
    assert "wrongly" not in " ".join(with_corruptions(ROWS, 20, 3)["sentence"])


def test_what_the_data_call_unacceptable_is_not_given_a_second_time() -> None:
    """Nor what differs from it in case and punctuation alone."""
    rows = frame((FOUR, 1), *((text.upper().removesuffix(" ."), 0) for text in moved(1)))
    spoiled = set(with_corruptions(rows, 50, 3)["sentence"]) - {FOUR}
    assert spoiled
    assert not spoiled & moved(1)


def test_what_is_known_besides_is_not_given_either() -> None:
    known = [text.upper() for text in moved(1)]
    spoiled = set(with_corruptions(frame((FOUR, 1)), 50, 3, known)["sentence"]) - {FOUR}
    assert spoiled
    assert not spoiled & moved(1)


def test_rows_may_be_numbered_in_any_way() -> None:
    other = ROWS.set_axis([9, 9, -1, 3, 3]).assign(source="x")
    pd.testing.assert_frame_equal(with_corruptions(other, 2, 3), with_corruptions(ROWS, 2, 3))


def test_fewer_are_spoiled_where_there_are_no_more() -> None:
    found = with_corruptions(frame(("alpha beta gamma", 1), ("yes", 1)), 100, 3)
    assert (found["label"] == 1).sum() == 200
    assert 0 < (found["label"] == 0).sum() < 200


@pytest.mark.parametrize("rows", [frame(), frame(("the cat sees .", 0))], ids=["no rows", "no acceptable ones"])
def test_without_acceptable_sentences_there_is_nothing(rows: pd.DataFrame) -> None:
    found = with_corruptions(rows, 2, 3)
    assert found.shape == (0, 2)
    assert found["label"].dtype == np.int64


@pytest.mark.parametrize("sentences", TOO_SHORT, ids=str)
def test_sentences_that_cannot_be_spoiled_stay_alone(sentences: Sequence[str]) -> None:
    found = with_corruptions(frame(*((sentence, 1) for sentence in sentences)), 2, 3)
    assert found["sentence"].tolist() == [*sentences, *sentences]


@unhurried
@given(st.lists(st.text("abc", min_size=1, max_size=9), max_size=40, unique=True))
def test_forms_are_all_that_differ_in_the_ending_alone(words: list[str]) -> None:
    def related(word: str, other: str) -> bool:
        shared = max(spoiling.STEM, max(len(word), len(other)) - spoiling.ENDING)
        return word != other and word[:shared] == other[:shared]

    assert spoiling._forms(words) == {word: [other for other in words if related(word, other)] for word in words}
