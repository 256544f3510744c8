"""Marks the tokens of a corrupted sentence that are wrong, for the second task of the corruption stage.

A corrupted copy differs from its sentence at words that were moved, changed or put in, and before the word that follows
a dropped one. They are found by comparing both, whatever corrupted it.

Shape letters: S tokens of a sentence.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np
import regex
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.training.losses import NO_MARK

_WORDS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]")  # a punctuation mark is a word of its own


def mark_tokens(tokenizer: Tokenizer, originals: Sequence[str], sentences: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return for each sentence [S]: 1 for a wrong token, 0 for a right one, NO_MARK for a special one.

    Args:
        tokenizer: that truncates as the model's input is truncated.
        originals: what each sentence was corrupted from, or the sentence itself.
        sentences: as the model reads them.
    """
    return [
        _mark(encoding.offsets, list(wrong_spans(original, sentence)))
        for original, sentence, encoding in zip(
            originals, sentences, tokenizer.encode_batch(list(sentences)), strict=True
        )
    ]


def wrong_spans(original: str, sentence: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the words of a sentence that are not the original's, or follow words that it lacks."""
    if original == sentence:
        return
    words = list(_WORDS.finditer(sentence))
    found, expected = [word[0] for word in words], _WORDS.findall(original)
    for kind, _, _, start, end in SequenceMatcher(None, expected, found, autojunk=False).get_opcodes():
        if kind == "delete":
            start, end = min(start, len(words) - 1), start + 1
        if kind != "equal":
            yield from (word.span() for word in words[max(0, start) : end])


def _mark(offsets: Sequence[tuple[int, int]], wrong: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    marks = np.full(len(offsets), NO_MARK, np.float32)
    for token, (start, end) in enumerate(offsets):
        if end > start:
            marks[token] = any(first < end and start < last for first, last in wrong)
    return marks
