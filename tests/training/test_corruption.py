"""Corrupted sentences: none is a known one, each corruption does what its name says, and any text may be given."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.normalization import normalise
from tasks.training import corruption
from tasks.training.corruption import CORRUPTIONS, MAX_ENDING, MIN_STEM, Corruption, corrupt, with_corruptions

unhurried = settings(deadline=None, max_examples=40)  # slow is not wrong

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


DISTINCT = tuple(dict.fromkeys(CORRUPTIONS))


def corrupted_by(way: Corruption, *sentences: str, count: int = 100, **options: int) -> list[str]:
    """Corrupt in one way only; so many tries find all results where there are few."""
    return corrupt(sentences, sentences, count, 0, corruptions=[way], **options)


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
def test_corrupted_sentences_are_no_more_than_wanted_all_different_and_none_is_known(
    sentences: list[str], others: list[str], count: int, seed: int
) -> None:
    found = corrupt(sentences, sentences + others, count, seed)
    keys = [normalise(text) for text in found]
    assert len(found) <= count
    assert len(set(keys)) == len(found)
    assert not set(keys) & {normalise(text) for text in sentences + others}
    assert corrupt(sentences, sentences + others, count, seed) == found


@unhurried
@given(st.lists(texts, max_size=5), st.integers(0, 2**32 - 1))
def test_corrupted_sentences_have_only_characters_of_the_sentences(sentences: list[str], seed: int) -> None:
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


def test_every_sentence_is_corrupted() -> None:
    found = " ".join(corrupt(SENTENCES, SENTENCES, 100, 1)).split()
    assert set(found) >= set(" ".join(SENTENCES).split())


@pytest.mark.parametrize("sentences", TOO_SHORT, ids=str)
def test_sentences_of_less_than_three_words_cannot_be_corrupted(sentences: list[str]) -> None:
    for way in DISTINCT:
        assert corrupted_by(way, *sentences) == [], way.__name__


def test_punctuation_alone_stays_punctuation() -> None:
    """Such data have no function words and no forms, so that some corruptions cannot be applied."""
    results = {way.__name__: corrupted_by(way, "! ! ! !", "? ? ? , . ", "... --- ... ?!") for way in DISTINCT}
    for name, found in results.items():
        assert set("".join(found)) <= set("!?,.- "), name
    without_results = {name for name, found in results.items() if not found}
    assert without_results == {
        "change_function_word", "insert_function_word", "change_form", "splice", "swap_distant"
    }  # fmt: skip


@pytest.mark.parametrize("sentence", ODD)
def test_no_corruption_splits_a_word_of_any_script(sentence: str) -> None:
    others = ["alpha alphas gamma delta", sentence]
    known = {word for text in others for word in text.removesuffix("।").split()}
    for way in DISTINCT:
        # With few function words there are content words to swap.
        found = corrupted_by(way, *others, count=40, function_words=2)
        assert found, way.__name__
        for text in found:
            assert set(text.removesuffix("।").split()) <= known, way.__name__


# What ends a sentence


@pytest.mark.parametrize("end", [" .", " ?", ".", "!", "?!", " ...", "...", '."', " 。", "。", " ।", "।", ""])
def test_final_punctuation_stays_where_it_is(end: str) -> None:
    """Otherwise a full stop within a sentence would give away that it is corrupted."""
    sentences = [f"alpha alphas gamma delta five six{end}", f"one two three four zeta{end}"]
    for way in DISTINCT:
        found = corrupted_by(way, *sentences, count=40, function_words=4)
        assert found, way.__name__
        for text in found:
            assert text.endswith(end), way.__name__
            assert all(word.isalpha() for word in text.removesuffix(end).split()), way.__name__


def test_a_splice_ends_as_the_sentence_that_it_begins_as() -> None:
    found = corrupted_by(corruption.splice, "alpha beta gamma!", "one two three ?")
    assert {text for text in found if text.startswith("alpha")} == {
        f"alpha beta {rest}!" for rest in ("two three", "three", "beta gamma")
    }
    assert {text for text in found if text.startswith("one")} == {
        f"one two {rest} ?" for rest in ("beta gamma", "gamma", "two three")
    }


# Each corruption


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (
            corruption.swap_neighbours,
            {"beta alpha gamma delta .", "alpha gamma beta delta .", "alpha beta delta gamma ."},
        ),
        (
            corruption.drop_word,
            {"beta gamma delta .", "alpha gamma delta .", "alpha beta delta .", "alpha beta gamma ."},
        ),
        (corruption.drop_span, {"alpha beta .", "alpha delta .", "gamma delta .", "alpha .", "delta ."}),
        (corruption.move_word, moved(1)),
        (corruption.move_span, moved(2) | moved(3)),
        (
            corruption.change_function_word,
            {
                " ".join([*FOUR.split()[:at], word, *FOUR.split()[at + 1 :]])
                for at in range(4)
                for word in FOUR.split()[:4]
            }
            - {FOUR},
        ),
        (
            corruption.insert_function_word,
            {" ".join([*FOUR.split()[:at], word, *FOUR.split()[at:]]) for at in range(5) for word in FOUR.split()[:4]},
        ),
        (corruption.change_form, set()),
        (corruption.swap_distant, set()),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_corruption_gives_these_results_for_four_words_and_no_others(way: Corruption, expected: set[str]) -> None:
    found = corrupted_by(way, FOUR)
    assert set(found) == expected
    assert len(found) == len(expected)


@unhurried
@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "the", ",", "été"]), min_size=3, max_size=8))
@pytest.mark.parametrize(
    ("way", "less", "more"),
    [
        (corruption.swap_neighbours, (0, 0), (0, 0)),
        (corruption.swap_distant, (0, 0), (0, 0)),
        (corruption.move_word, (0, 0), (0, 0)),
        (corruption.move_span, (0, 0), (0, 0)),
        (corruption.drop_word, (1, 1), (0, 0)),
        (corruption.drop_span, (2, 3), (0, 0)),
        (corruption.insert_function_word, (0, 0), (1, 1)),
        (corruption.change_function_word, (1, 1), (1, 1)),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_corruption_removes_and_adds_so_many_words(
    way: Corruption, less: tuple[int, int], more: tuple[int, int], drawn: list[str]
) -> None:
    before = Counter(drawn)
    for text in corrupted_by(way, " ".join([*drawn, "."]), count=5):
        after = Counter(text.split()[:-1])
        assert less[0] <= (before - after).total() <= less[1]
        assert more[0] <= (after - before).total() <= more[1]


def test_distant_words_are_swapped_only_if_they_are_no_function_words() -> None:
    assert set(corrupted_by(corruption.swap_distant, "the cat , the dog sees .", function_words=1)) == {
        "the dog , the cat sees .",
        "the sees , the dog cat .",
        "the cat , the sees dog .",
    }


def test_function_words_are_the_most_frequent_ones() -> None:
    frequent = ["the cat , a dog .", "a bird , the fox ."]
    assert set(corrupted_by(corruption.change_function_word, *frequent, function_words=2)) == {
        "a cat , a dog .",
        "the cat , the dog .",
        "the bird , the fox .",
        "a bird , a fox .",
    }
    assert {normalise(text) for text in corrupted_by(corruption.insert_function_word, *frequent, function_words=2)} == {
        normalise(" ".join([*source.split()[:at], word, *source.split()[at:]]))
        for source in frequent
        for at in range(6)
        for word in ("the", "a")
    }


def test_a_word_changes_to_what_differs_in_its_ending_alone() -> None:
    found = corrupted_by(corruption.change_form, "she walks here now .", "one walked often .", "two walkways ended .")
    assert set(found) == {"she walked here now .", "one walks often ."}


@unhurried
@given(st.lists(st.text("abcé", min_size=1, max_size=9), min_size=3, max_size=12, unique=True))
def test_forms_share_their_stem_and_differ_in_few_letters(drawn: list[str]) -> None:
    for text in corrupted_by(corruption.change_form, " ".join(drawn), count=10):
        ((old, new),) = [pair for pair in zip(drawn, text.split(), strict=True) if pair[0] != pair[1]]
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))))
        assert shared >= MIN_STEM
        assert max(len(old), len(new)) - shared <= MAX_ENDING
        assert new in drawn


# With the sentences themselves

ROWS = frame(*((sentence, 1) for sentence in SENTENCES), ("wrongly cat the dog wrongly likes .", 0))


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_there_are_as_many_corrupted_rows_as_acceptable_ones(copies: int) -> None:
    found = with_corruptions(ROWS, copies, 3)
    assert list(found.columns) == ["sentence", "label"]
    assert found["label"].tolist() == [1] * 4 * copies + [0] * 4 * copies
    assert found["label"].dtype == np.int64
    assert found.loc[found["label"] == 1, "sentence"].tolist() == SENTENCES * copies
    assert not set(found.loc[found["label"] == 0, "sentence"]) & set(ROWS["sentence"])


def test_only_acceptable_sentences_are_corrupted() -> None:
    assert "wrongly" not in " ".join(with_corruptions(ROWS, 20, 3)["sentence"])


def test_no_unacceptable_sentence_of_the_data_is_returned() -> None:
    """Nor what differs from it in case and punctuation alone."""
    rows = frame((FOUR, 1), *((text.upper().removesuffix(" ."), 0) for text in moved(1)))
    corrupted = set(with_corruptions(rows, 50, 3)["sentence"]) - {FOUR}
    assert corrupted
    assert not corrupted & moved(1)


def test_no_other_known_sentence_is_returned() -> None:
    known = [text.upper() for text in moved(1)]
    corrupted = set(with_corruptions(frame((FOUR, 1)), 50, 3, known)["sentence"]) - {FOUR}
    assert corrupted
    assert not corrupted & moved(1)


def test_rows_may_be_numbered_in_any_way() -> None:
    other = ROWS.set_axis([9, 9, -1, 3, 3]).assign(source="x")
    pd.testing.assert_frame_equal(with_corruptions(other, 2, 3), with_corruptions(ROWS, 2, 3))


def test_there_are_fewer_corrupted_rows_where_no_more_differ() -> None:
    found = with_corruptions(frame(("alpha beta gamma", 1), ("yes", 1)), 100, 3)
    assert (found["label"] == 1).sum() == 200
    assert 0 < (found["label"] == 0).sum() < 200


@pytest.mark.parametrize("rows", [frame(), frame(("the cat sees .", 0))], ids=["no rows", "no acceptable ones"])
def test_without_acceptable_sentences_there_is_nothing(rows: pd.DataFrame) -> None:
    found = with_corruptions(rows, 2, 3)
    assert found.shape == (0, 2)
    assert found["label"].dtype == np.int64


@pytest.mark.parametrize("sentences", TOO_SHORT, ids=str)
def test_sentences_that_cannot_be_corrupted_are_returned_alone(sentences: Sequence[str]) -> None:
    found = with_corruptions(frame(*((sentence, 1) for sentence in sentences)), 2, 3)
    assert found["sentence"].tolist() == [*sentences, *sentences]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=3, max_size=12, unique=True))
def test_forms_are_all_words_that_differ_in_the_ending_alone(words: list[str]) -> None:
    def related(word: str, other: str) -> bool:
        shared = max(MIN_STEM, max(len(word), len(other)) - MAX_ENDING)
        return word != other and word[:shared] == other[:shared]

    expected = {
        " ".join([*words[:index], other, *words[index + 1 :]])
        for index, word in enumerate(words)
        for other in words
        if related(word, other)
    }
    assert set(corrupted_by(corruption.change_form, " ".join(words), count=len(expected) + 50)) == expected
