"""Corrupts acceptable sentences, as negative examples for a training stage before fine-tuning.

Sentence encoders trained on meaning lose information about word order and function words. Classifying sentences
against corrupted copies restores it, with any number of examples and without labels (an intermediate task, Phang et
al. 2018, https://arxiv.org/abs/1811.01088). Nothing here depends on the language: function words are the most frequent
words of the data, and forms of a word are words with the same stem, by letters.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import regex

from tasks.data.normalization import normalise_all

FUNCTION_WORDS = 60  # most frequent words of the sentences
MAX_ENDING = 3  # letters that forms of a word may differ in, at their end
MIN_STEM = 3  # letters that forms of a word share, at the least
MIN_WORDS = 3  # words of a sentence that can be corrupted
MAX_SPAN = 3  # words that are moved or dropped together
MAX_TRIES = 20  # per wanted sentence

_FINAL_PUNCTUATION = regex.compile(r"[^\p{L}\p{N}\p{M}]+$")

Corruption = Callable[[list[str], "CorpusWords", np.random.Generator], list[str] | None]


class SplitSentence(NamedTuple):
    """A sentence's words, and its final punctuation with the space before it, if any."""

    words: list[str]
    end: str

    def join(self, words: list[str]) -> str:
        """Return other words with the sentence's end."""
        return " ".join(words) + self.end


class CorruptedPair(NamedTuple):
    """A sentence and a corrupted copy."""

    original: str
    corrupted: str


class CorpusWords(NamedTuple):
    """What corruptions draw from: sentences, function words, and the other forms of each word."""

    sentences: list[SplitSentence]
    function_words: list[str]
    forms: dict[str, list[str]]


def with_corruptions(
    rows: pd.DataFrame, copies: int, seed: int, known: Sequence[str] = (), *, originals: bool = False
) -> pd.DataFrame:
    """Return acceptable rows, `copies` times, with as many corrupted ones: columns sentence and label.

    There are fewer corrupted rows where the sentences are too few or too short for so many different ones.

    Args:
        rows: columns sentence and label; those with label 1 are taken.
        copies: corrupted sentences for each of them.
        seed: of the random choices.
        known: further sentences that may not be returned as corrupted ones.
        originals: add a column `original`: what each sentence was corrupted from, or the sentence itself.
    """
    acceptable = rows.loc[rows["label"] == 1, "sentence"].tolist()
    pairs = _corrupt(acceptable, [*rows["sentence"], *known], copies * len(acceptable), seed)
    sentences = acceptable * copies + [pair.corrupted for pair in pairs]
    labels = [1] * (len(acceptable) * copies) + [0] * len(pairs)
    found = pd.DataFrame({"sentence": sentences, "label": np.array(labels, np.int64)})
    return found.assign(original=acceptable * copies + [pair.original for pair in pairs]) if originals else found


def corrupt(
    sentences: Sequence[str],
    known: Sequence[str],
    count: int,
    seed: int,
    *,
    corruptions: Sequence[Corruption] | None = None,
    function_words: int = FUNCTION_WORDS,
) -> list[str]:
    """Return up to `count` corrupted sentences, in a reproducible order.

    Normalised, no two of them are equal and none equals a known sentence.

    Args:
        sentences: to corrupt.
        known: sentences that may not be returned.
        count: wanted sentences.
        seed: of the random choices.
        corruptions: to choose from, equally likely; None for CORRUPTIONS.
        function_words: how many of the most frequent words count as function words.
    """
    pairs = _corrupt(sentences, known, count, seed, corruptions=corruptions, function_words=function_words)
    return [pair.corrupted for pair in pairs]


def _corrupt(
    sentences: Sequence[str],
    known: Sequence[str],
    count: int,
    seed: int,
    *,
    corruptions: Sequence[Corruption] | None = None,
    function_words: int = FUNCTION_WORDS,
) -> list[CorruptedPair]:
    """Do what `corrupt` does; return the sentences with what they were."""
    rng = np.random.default_rng(seed)
    corpus = _collect_words([_split_words(sentence) for sentence in sentences], function_words)
    ways = corruptions or CORRUPTIONS
    seen = set(normalise_all(pa.array(list(known), pa.string())))
    found: list[CorruptedPair] = []
    tries = count * MAX_TRIES
    while len(found) < count and tries > 0:
        drawn = [_draw(corpus, ways, rng) for _ in range(min(tries, count - len(found) + 1))]
        tries -= len(drawn)
        pairs = [pair for pair in drawn if pair]
        texts = pa.array([pair.corrupted for pair in pairs], pa.string())
        for pair, key in zip(pairs, normalise_all(texts), strict=True):
            if key not in seen:
                seen.add(key)
                found.append(pair)
    return found[:count]


def _split_words(text: str) -> SplitSentence:
    words = text.split()
    if not words:
        return SplitSentence([], "")
    last = words.pop()
    if not _is_word(last):
        return SplitSentence(words, f" {last}")
    word = _FINAL_PUNCTUATION.sub("", last)
    return SplitSentence([*words, word], last[len(word) :])


def _collect_words(sentences: list[SplitSentence], function_words: int) -> CorpusWords:
    counts = Counter(word for sentence in sentences for word in sentence.words if _is_word(word))
    forms = _forms(list(counts))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:function_words]
    return CorpusWords(sentences, frequent, forms)


def _forms(words: list[str]) -> dict[str, list[str]]:
    """Return for each word those that differ from it in the ending alone, in the order of `words`.

    The stem that two forms share is the longer one without its ending: it is looked up among prefixes of the others.
    """
    by_prefix = defaultdict(list)
    for index, word in enumerate(words):
        for length in range(_stem_length(word), len(word) + 1):
            by_prefix[word[:length]].append(index)
    found: dict[int, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for other in by_prefix.get(word[: _stem_length(word)], ()):
            if other != index and len(words[other]) <= len(word):
                found[index].add(other)
                found[other].add(index)
    return {word: [words[other] for other in sorted(found[index])] for index, word in enumerate(words)}


def _stem_length(word: str) -> int:
    """Return how many letters a word shares with its shorter forms."""
    return max(MIN_STEM, len(word) - MAX_ENDING)


def _draw(corpus: CorpusWords, ways: Sequence[Corruption], rng: np.random.Generator) -> CorruptedPair | None:
    """Corrupt a random sentence in one random way; return None where that way cannot be applied to it."""
    if not corpus.sentences:
        return None
    sentence = corpus.sentences[rng.integers(len(corpus.sentences))]
    if len(sentence.words) < MIN_WORDS:
        return None
    corrupted = ways[int(rng.integers(len(ways)))](list(sentence.words), corpus, rng)
    return CorruptedPair(sentence.join(sentence.words), sentence.join(corrupted)) if corrupted else None


def _is_word(text: str) -> bool:
    return text[0].isalnum()


def swap_neighbours(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Swap two adjacent words."""
    index = rng.integers(len(words) - 1)
    words[index], words[index + 1] = words[index + 1], words[index]
    return words


def swap_distant(words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Swap two words that are not function words."""
    content_words = [index for index, word in enumerate(words) if _is_word(word) and word not in corpus.function_words]
    if len(content_words) < 2:
        return None
    one, other = rng.choice(content_words, 2, replace=False)
    words[one], words[other] = words[other], words[one]
    return words


def drop_word(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Remove a word."""
    del words[rng.integers(len(words))]
    return words


def move_word(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Move a word to a random position."""
    word = words.pop(rng.integers(len(words)))
    words.insert(rng.integers(len(words) + 1), word)
    return words


def change_function_word(words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Replace a function word by a random one."""
    indices = [index for index, word in enumerate(words) if word in corpus.function_words]
    if not indices:
        return None
    words[rng.choice(indices)] = corpus.function_words[rng.integers(len(corpus.function_words))]
    return words


def insert_function_word(words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Insert a function word."""
    if not corpus.function_words:
        return None
    words.insert(rng.integers(len(words) + 1), corpus.function_words[rng.integers(len(corpus.function_words))])
    return words


def change_form(words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Replace a word by another form of it."""
    indices = [index for index, word in enumerate(words) if corpus.forms.get(word)]
    if not indices:
        return None
    index = rng.choice(indices)
    forms = corpus.forms[words[index]]
    words[index] = forms[rng.integers(len(forms))]
    return words


def move_span(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Move two or three adjacent words to a random position."""
    start, end = _span(words, rng)
    span = words[start:end]
    del words[start:end]
    index = rng.integers(len(words) + 1)
    words[index:index] = span
    return words


def drop_span(words: list[str], _: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Remove two or three adjacent words."""
    start, end = _span(words, rng)
    del words[start:end]
    return words


def splice(words: list[str], corpus: CorpusWords, rng: np.random.Generator) -> list[str] | None:
    """Continue the beginning of the sentence with the end of another one, without its punctuation."""
    other = corpus.sentences[rng.integers(len(corpus.sentences))].words
    if len(other) < 2:
        return None
    begin = words[: rng.integers(2, len(words))]
    rest = [word for word in other[rng.integers(1, len(other)) :] if _is_word(word)]
    return begin + rest if rest else None


def _span(words: list[str], rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(2, min(MAX_SPAN, len(words) - 1) + 1))
    start = int(rng.integers(len(words) - length + 1))
    return start, start + length


# Repeated entries are drawn more often: sentence encoders are weakest at function words and moved phrases.
CORRUPTIONS: tuple[Corruption, ...] = (
    swap_neighbours,
    drop_word,
    move_word,
    change_function_word,
    change_function_word,
    insert_function_word,
    change_form,
    move_span,
    move_span,
    drop_span,
    splice,
    swap_distant,
)
