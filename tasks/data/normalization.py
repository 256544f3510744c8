"""Normalises sentences: two that differ only in case, punctuation or spacing are the same sentence."""

import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import regex
from numpy.typing import NDArray

SentenceKeys = NDArray[np.uint64]

# Combining marks belong to their letters: without them different words of Hindi or Vietnamese would be equal.
_NOT_WORD = regex.compile(r"[^\p{L}\p{N}\p{M}]+")


def normalise(sentence: str) -> str:
    """Return the sentence without differences of case, punctuation and spacing.

    A sentence of punctuation alone keeps it: "..." and "?!" are not the same.
    """
    words = _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", sentence).casefold()).split()
    return " ".join(words or sentence.split())


def normalise_all(sentences: pa.Array) -> NDArray[np.object_]:
    """Normalise [N] sentences; ASCII ones, nearly all, with Arrow, which is several times as fast."""
    ascii_words = pc.replace_substring_regex(pc.utf8_lower(sentences), pattern="[^0-9a-z]+", replacement=" ")
    ascii_words = pc.ascii_trim_whitespace(ascii_words)
    normalised = ascii_words.to_numpy(zero_copy_only=False)
    others = pc.or_(pc.invert(pc.string_is_ascii(sentences)), pc.equal(ascii_words, ""))
    rows = np.flatnonzero(others.to_numpy(zero_copy_only=False))
    if len(rows):
        normalised = normalised.copy()  # Arrow's own array is read-only
        normalised[rows] = [normalise(sentence) for sentence in sentences.take(pa.array(rows)).to_pylist()]
    return normalised


def sentence_keys(sentences: pa.Array) -> SentenceKeys:
    """Return a 64-bit hash [N] of each normalised sentence, the same on every machine.

    Among 10 million different sentences, the probability that any two collide is 3 in a million.
    """
    return pd.util.hash_array(normalise_all(sentences), categorize=False)
