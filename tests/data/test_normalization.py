"""Normalised sentences are equal exactly where only case, punctuation or spacing differ; Arrow and Python agree."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tasks.data.normalization import normalise, normalise_all, sentence_keys

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

# Arrow holds no halves of surrogate pairs.
text = st.text(st.characters(codec="utf-8"))
ascii_text = st.text(st.characters(max_codepoint=127))
words = st.lists(st.text(st.characters(categories=["L", "N"], codec="utf-8"), min_size=1), min_size=1, max_size=5)
between = st.sampled_from([" ", "  ", "\t", ", ", " - ", "… ", "\u3000", "\u2028", "_", "/", "\xad \u200b"])
around = st.sampled_from(["", " ", ".", "?!", "“", "»", "...", "*", "\xa0", "$"])


def array(*sentences: str) -> pa.Array:
    return pa.array(sentences, pa.string())


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The cat sat.", "the cat sat"),
        ("  THE   cat\tsat !", "the cat sat"),
        ("the_cat-sat", "the cat sat"),
        ("“The cat” sat…", "the cat sat"),
        ("cafe\u0301", "café"),
        ("ﬁne", "fine"),
        ("\uff43at", "cat"),  # a full-width c
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("I'm 2 late", "i m 2 late"),
        ("हिन्दी में", "हिन्दी में"),  # vowel signs belong to their letters
        ("can not", "can not"),
        ("cannot", "cannot"),
        ("résumé", "résumé"),
        (" ?! ", "?!"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευσ"),
        ("Οδυσσεύς", "οδυσσεύσ"),
        ("你好。世界。", "你好 世界"),
        ("x\x00y\x1cz", "x y z"),
        ("...", "..."),
        (" ?  ! ", "? !"),
        ("…", "…"),
        ("🙂 🙃", "🙂 🙃"),
        ("🙂 ok", "ok"),
        ("", ""),
        (" \t\u3000", ""),
    ],
)
def test_normalising_drops_case_punctuation_and_spacing(sentence: str, expected: str) -> None:
    assert normalise(sentence) == expected
    assert normalise_all(array(sentence)).tolist() == [expected]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("कि", "की"),  # Hindi: that; of. Their vowels are combining marks.
        ("मेल", "मेला"),  # meeting; fair
        ("दिन", "दीन"),  # day; poor
        ("ma", "má"),  # Vietnamese: ghost; mother
        ("má", "mà"),  # mother; but
        ("mạ", "mả"),  # rice seedling; grave
        ("ba", "bà"),
        ("கல்", "கால்"),  # Tamil: stone; leg
        ("שָׁלוֹם", "שלום"),  # Hebrew: with and without points
        ("is", "i s"),
        ("It's", "Its"),
        ("...", "?!"),
        ("…", "..."),
        ("!", "!!"),
        ("🙂", "🙃"),
        ("", "."),
        ("1", "2"),
    ],
)
def test_different_words_and_lone_punctuation_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
    first, second = sentence_keys(array(one, other))
    assert first != second


@pytest.mark.parametrize(
    "spellings",
    [
        ("The cat sat.", "the cat sat", "THE  CAT... SAT?!", "“The cat—sat”", "the\tcat\u3000sat"),
        ("Straße", "STRASSE", "strasse."),
        ("café", "cafe\u0301", "CAFE\u0301!"),
        ("mẹ", "me\u0323", "ME\u0323"),
        ("ﬁne", "fine", "FINE"),
        ("यह किताब है।", "यह  किताब है"),
        ("?  !", " ? !", "?\t!"),
    ],
)
def test_keys_are_equal_where_normalised_sentences_are(spellings: tuple[str, ...]) -> None:
    assert len({normalise(spelling) for spelling in spellings}) == 1
    keys = sentence_keys(array(*spellings))
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 1


def test_keys_are_the_same_on_every_machine() -> None:
    assert sentence_keys(array("The cat sat.", "寿司", "...")).tolist() == [
        17859762040094956439,
        14415460270032152634,
        4093090263182379913,
    ]


@unhurried
@given(text)
@example("\u0345\u0301")
@example("ᾳ\u0301")
@example("İ")
@example("\xb4")  # a spacing accent
@example("ŉ")
def test_normalising_twice_changes_nothing_more(sentence: str) -> None:
    assert normalise(normalise(sentence)) == normalise(sentence)


@unhurried
@given(words, between, between, around, around)
def test_case_punctuation_and_spacing_change_nothing(
    parts: list[str], one: str, other: str, before: str, after: str
) -> None:
    expected = normalise(" ".join(parts))
    assert normalise(before + one.join(parts) + after) == expected
    assert normalise(after + other.join(parts).casefold() + before) == expected


@unhurried
@given(words)
def test_upper_and_lower_case_are_the_same(parts: list[str]) -> None:
    sentence = " ".join(parts)
    assume(sentence.upper().casefold() == sentence.casefold())  # not so for a dotless i and some other letters
    assert normalise(sentence.upper()) == normalise(sentence)


@unhurried
@given(text)
def test_only_an_empty_sentence_normalises_to_nothing(sentence: str) -> None:
    assert (normalise(sentence) == "") == (not sentence.strip())


@unhurried
@given(st.lists(st.one_of(text, ascii_text, st.tuples(around, between, around).map("".join)), max_size=8))
@example([])
@example(["", "...", "A", "É"])
@example(["ΑΣ", "ǅ", "_", "a\x7fb"])
@example(["K", "\u212a", "\u017f", "_a_", "\x1c", "\x7f", "a\x00b", "İ"])
def test_normalising_many_is_normalising_each(sentences: list[str]) -> None:
    normalised = normalise_all(array(*sentences))
    assert normalised.dtype == object
    assert normalised.tolist() == [normalise(sentence) for sentence in sentences]
    assert len(sentence_keys(array(*sentences))) == len(sentences)


def test_normalising_many_is_normalising_each_for_every_character() -> None:
    letters = [chr(i) for i in range(0x3000) if not 0xD800 <= i < 0xE000]
    sentences = [*letters, *(f"A{letter}B" for letter in letters)]
    assert normalise_all(array(*sentences)).tolist() == [normalise(sentence) for sentence in sentences]


@unhurried
@given(st.lists(text, min_size=2, max_size=6))
def test_keys_are_equal_exactly_where_normalised_sentences_are(sentences: list[str]) -> None:
    keys = sentence_keys(array(*sentences)).tolist()
    normalised = [normalise(sentence) for sentence in sentences]
    for one in range(len(sentences)):
        for other in range(one):
            assert (keys[one] == keys[other]) == (normalised[one] == normalised[other])


def test_normalising_leaves_its_argument_alone() -> None:
    sentences = array("The cat.", "Zoë!", "...")
    normalise_all(sentences)
    assert sentences.to_pylist() == ["The cat.", "Zoë!", "..."]
    assert normalise_all(sentences.slice(1)).tolist() == ["zoë", "..."]
