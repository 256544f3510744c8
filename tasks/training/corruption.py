"""Spoiled sentences: acceptable ones in which something is made wrong, for an encoder to tell apart before it trains.

An encoder that was made for the meaning of whole sentences has forgotten much about word order and small words. Telling
sentences from their spoiled selves brings that back, with as many examples as one likes and without a label from anyone
(an intermediate task, Phang et al. 2018, https://arxiv.org/abs/1811.01088). Nothing here knows a language: small words
are the most frequent ones of the data, and forms of a word are those that begin alike.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import regex

from tasks.data.normalization import normalise_all

FUNCTION_WORD_SETS = 60  # most frequent words of the sentences
ENDING = 3  # letters, at the most, that forms of a word differ in
STEM = 3  # letters, at the least, that they share
MIN_WORDS = 3  # words of a sentence that can be spoiled
MAX_SPAN = 3  # words that are moved or dropped together
MAX_TRIES = 20  # for each sentence that is wanted

_FINAL = regex.compile(r"[^\p{L}\p{N}\p{M}]+$")  # punctuation at the end of a word

Corruption = Callable[[list[str], "CorpusWords", np.random.Generator], list[str] | None]


class SplitSentence(NamedTuple):
    """A sentence's words, and the punctuation that ends it, with the space before it where there is one."""

    words: list[str]
    end: str


class CorpusWords(NamedTuple):
    """What spoiling draws from: sentences, the small words, and each word's other forms."""

    sentences: list[SplitSentence]
    function_words: list[str]
    forms: dict[str, list[str]]


def with_corruptions(rows: pd.DataFrame, copies: int, seed: int, known: Sequence[str] = ()) -> pd.DataFrame:
    """Return acceptable rows, `copies` times, with as many spoiled ones: columns sentence and label.

    Fewer come back where the sentences are too few or too short to give as many that differ.

    Args:
        rows: columns sentence and label; those with label 1 are taken.
        copies: spoiled sentences for each of them.
        seed: another seed, other sentences.
        known: further sentences that no spoiled one may be.
    """
    acceptable = rows.loc[rows["label"] == 1, "sentence"].tolist()
    spoiled = corrupt(acceptable, [*rows["sentence"], *known], copies * len(acceptable), seed)
    sentences = acceptable * copies + spoiled
    labels = [1] * (len(acceptable) * copies) + [0] * len(spoiled)
    return pd.DataFrame({"sentence": sentences, "label": np.array(labels, np.int64)})


def corrupt(sentences: Sequence[str], known: Sequence[str], count: int, seed: int) -> list[str]:
    """Return up to `count` different spoiled sentences, in a fixed order; none of them is a known sentence, folded."""
    rng = np.random.default_rng(seed)
    lexicon = _collect_words([_split_words(sentence) for sentence in sentences])
    seen = set(normalise_all(pa.array(list(known), pa.string())))
    found: list[str] = []
    tries = count * MAX_TRIES
    while len(found) < count and tries > 0:
        drawn = [_draw(lexicon, rng) for _ in range(min(tries, count - len(found) + 1))]
        tries -= len(drawn)
        texts = [text for text in drawn if text]
        for text, folded in zip(texts, normalise_all(pa.array(texts, pa.string())), strict=True):
            if folded not in seen:
                seen.add(folded)
                found.append(text)
    return found[:count]


def _split_words(text: str) -> SplitSentence:
    words = text.split()
    if not words:
        return SplitSentence([], "")
    last = words.pop()
    if not _is_word(last):
        return SplitSentence(words, f" {last}")
    bare = _FINAL.sub("", last)
    return SplitSentence([*words, bare], last[len(bare) :])


def _collect_words(sentences: list[SplitSentence]) -> CorpusWords:
    counts = Counter(word for sentence in sentences for word in sentence.words if _is_word(word))
    forms = _forms(list(counts))
    small = [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:FUNCTION_WORD_SETS]]
    return CorpusWords(sentences, small, forms)


def _forms(words: list[str]) -> dict[str, list[str]]:
    """Return for each word those that differ from it in the ending alone, in the order of the words.

    What two forms share is all of the longer one but an ending: it is looked up among what the others begin with.
    """
    beginnings = defaultdict(list)
    for place, word in enumerate(words):
        for length in range(_shared(word), len(word) + 1):
            beginnings[word[:length]].append(place)
    found: dict[int, set[int]] = defaultdict(set)
    for place, word in enumerate(words):
        for other in beginnings.get(word[: _shared(word)], ()):
            if other != place and len(words[other]) <= len(word):
                found[place].add(other)
                found[other].add(place)
    return {word: [words[other] for other in sorted(found[place])] for place, word in enumerate(words)}


def _shared(word: str) -> int:
    """Return how many letters a word shares with its shorter forms."""
    return max(STEM, len(word) - ENDING)


def _draw(lexicon: CorpusWords, rng: np.random.Generator) -> str:
    """Spoil a sentence in one way; empty where that way does not suit the sentence."""
    if not lexicon.sentences:
        return ""
    sentence = lexicon.sentences[rng.integers(len(lexicon.sentences))]
    if len(sentence.words) < MIN_WORDS:
        return ""
    spoiled = CORRUPTIONS[rng.integers(len(CORRUPTIONS))](list(sentence.words), lexicon, rng)
    return " ".join(spoiled) + sentence.end if spoiled else ""


def _is_word(text: str) -> bool:
    return text[0].isalnum()


def _swap_neighbours(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    at = rng.integers(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    return words


def _swap_distant(words: list[str], lexicon: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    large = [place for place, word in enumerate(words) if _is_word(word) and word not in lexicon.function_words]
    if len(large) < 2:
        return None
    one, other = rng.choice(large, 2, replace=False)
    words[one], words[other] = words[other], words[one]
    return words


def _drop_word(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    del words[rng.integers(len(words))]
    return words


def _move_word(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    word = words.pop(rng.integers(len(words)))
    words.insert(rng.integers(len(words) + 1), word)
    return words


def _change_function_word(words: list[str], lexicon: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    places = [place for place, word in enumerate(words) if word in lexicon.function_words]
    if not places:
        return None
    words[rng.choice(places)] = lexicon.function_words[rng.integers(len(lexicon.function_words))]
    return words


def _insert_function_word(words: list[str], lexicon: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    if not lexicon.function_words:
        return None
    words.insert(rng.integers(len(words) + 1), lexicon.function_words[rng.integers(len(lexicon.function_words))])
    return words


def _change_form(words: list[str], lexicon: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    places = [place for place, word in enumerate(words) if lexicon.forms.get(word)]
    if not places:
        return None
    place = rng.choice(places)
    forms = lexicon.forms[words[place]]
    words[place] = forms[rng.integers(len(forms))]
    return words


def _move_span(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    start, end = _span(words, rng)
    span = words[start:end]
    del words[start:end]
    at = rng.integers(len(words) + 1)
    words[at:at] = span
    return words


def _drop_span(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    start, end = _span(words, rng)
    del words[start:end]
    return words


def _splice(words: list[str], lexicon: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    other = lexicon.sentences[rng.integers(len(lexicon.sentences))].words
    if len(other) < 2:
        return None
    begin = words[: rng.integers(2, len(words))]
    rest = [word for word in other[rng.integers(1, len(other)) :] if _is_word(word)]
    return begin + rest if rest else None


def _span(words: list[str], rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(2, min(MAX_SPAN, len(words) - 1) + 1))
    start = int(rng.integers(len(words) - length + 1))
    return start, start + length


# Small words and single words come more often: that is where encoders of meaning are weakest.
CORRUPTIONS: tuple[Corruption, ...] = (
    _swap_neighbours,
    _drop_word,
    _move_word,
    _change_function_word,
    _change_function_word,
    _insert_function_word,
    _change_form,
    _move_span,
    _move_span,
    _drop_span,
    _splice,
    _swap_distant,
)
