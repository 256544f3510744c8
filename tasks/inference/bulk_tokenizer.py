"""Tokenises many sentences at once: groups of them joined into one text, around a special token.

The library `tokenizers` returns an object and a Python list for each text, which costs more than tokenising it does:
175,000 sentences a second on 16 cores instead of 396,000. A tokenizer splits a text at special tokens first, so each
sentence between two of them gets the tokens that it gets alone. That holds for the usual kinds (WordPiece, byte-level
BPE) and is tried for each tokenizer before its first use; one that fails is not used in this way.

Shape letters: N sentences.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .tokenization import TokenIds, TokenizedText, tokenise

GROUP_SENTENCES = 64
GROUP_CHARACTERS = 16_384  # a group ends with the sentence that exceeds this: groups are the units of parallel work
# Tried before first use: spaces, case, accents, punctuation at both ends, other scripts, no text at all.
PROBES = (
    "The cat sat on the mat.", " leading and trailing ", "", "i'm (not) sure...", "naïve café, 42 times!", "x", "A",
    "\u0301a\u0301", "ΑΒΓ 日本語 🙂", "un-\nbroken\ttabs", "'quoted'", "supercalifragilisticexpialidocious",
)  # fmt: skip


class BulkTokenizer:
    """Tokenises sentences as `tokenise` does, several times as fast on many cores. Made by `create`."""

    def __init__(self, single: Tokenizer, separator: str, prefix: TokenIds, suffix: TokenIds) -> None:
        """Prepare; see `create`.

        Args:
            single: the tokenizer for one sentence, which truncates.
            separator: a special token's text.
            prefix: special tokens before each sentence.
            suffix: special tokens after it.
        """
        self._single, self._separator = single, separator
        self._prefix, self._suffix = prefix, suffix
        self._joined = Tokenizer.from_str(single.to_str())
        self._joined.no_truncation()
        self._separator_id = single.token_to_id(separator)
        truncation = single.truncation
        special = len(prefix) + len(suffix)
        self._content = truncation["max_length"] - special if truncation else np.iinfo(np.int64).max

    @classmethod
    def create(cls, tokenizer: Tokenizer) -> Self | None:
        """Return a bulk tokenizer, or None where sentences joined by no special token keep their own tokens."""
        expected = tokenise(tokenizer, PROBES)
        affixes = _affixes(tokenizer)
        if affixes is None:
            return None
        for separator in _separators(tokenizer):
            bulk = cls(tokenizer, separator, *affixes)
            (found,) = bulk._tokenise_groups([PROBES])
            if found is not None and all(map(np.array_equal, bulk._assemble(*found), expected)):
                return bulk
        return None

    def tokenise(self, sentences: Sequence[str]) -> TokenizedText:
        """Tokenise [N] sentences on all cores, with special tokens."""
        groups = list(_groups(sentences))
        if not groups:
            return tokenise(self._single, sentences)
        found = self._tokenise_groups(groups)
        parts = [part or self._each_alone(group) for part, group in zip(found, groups, strict=True)]
        ids, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return self._assemble(ids, lengths)

    def _tokenise_groups(self, groups: Sequence[Sequence[str]]) -> list[tuple[TokenIds, TokenIds] | None]:
        """Tokenise groups as one text each; see `_split`."""
        texts = [self._separator.join(group) for group in groups]
        encodings = self._joined.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._split(np.fromiter(encoding.ids, np.int64, len(encoding)), len(group))
            for encoding, group in zip(encodings, groups, strict=True)
        ]

    def _split(self, ids: TokenIds, count: int) -> tuple[TokenIds, TokenIds] | None:
        """Return the tokens between separators and the length of each sentence; None if a sentence holds one itself."""
        separators = ids == self._separator_id
        ends = np.append(np.flatnonzero(separators), len(ids))
        if len(ends) != count:
            return None
        return ids[~separators], np.diff(ends, prepend=-1) - 1

    def _each_alone(self, group: Sequence[str]) -> tuple[TokenIds, TokenIds]:
        ids = [encoding.ids for encoding in self._joined.encode_batch_fast(list(group), add_special_tokens=False)]
        return np.concatenate([np.array(row, np.int64) for row in ids]), np.array([len(row) for row in ids], np.int64)

    def _assemble(self, ids: TokenIds, lengths: TokenIds) -> TokenizedText:
        """Truncate sentences, given their tokens one after another, and put special tokens around them."""
        kept = np.minimum(lengths, self._content)
        position = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)  # of each kept token in its sentence
        total = kept + len(self._prefix) + len(self._suffix)
        starts = np.cumsum(total) - total
        result = np.empty(total.sum(), np.int64)
        result[np.repeat(starts + len(self._prefix), kept) + position] = ids[
            np.repeat(np.cumsum(lengths) - lengths, kept) + position
        ]
        for number, token in enumerate(self._prefix):
            result[starts + number] = token
        for number, token in enumerate(self._suffix):
            result[starts + total - len(self._suffix) + number] = token
        return TokenizedText(result, starts, total, lengths > self._content)


def _groups(sentences: Sequence[str]) -> Iterator[list[str]]:
    """Divide sentences into groups that are tokenised as one text each."""
    group: list[str] = []
    characters = 0
    for sentence in sentences:
        group.append(sentence)
        characters += len(sentence)
        if len(group) == GROUP_SENTENCES or characters > GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _affixes(tokenizer: Tokenizer) -> tuple[TokenIds, TokenIds] | None:
    """Return the special tokens before and after a sentence; None if they are not the same for each sentence."""
    bare: NDArray[np.int64] = np.array(tokenizer.encode("x", add_special_tokens=False).ids, np.int64)
    whole: NDArray[np.int64] = np.array(tokenizer.encode("x").ids, np.int64)
    for start in range(len(whole) - len(bare) + 1):
        if np.array_equal(whole[start : start + len(bare)], bare):
            return whole[:start], whole[start + len(bare) :]
    return None


def _separators(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield special tokens that keep the spaces beside them and stand for no unknown word."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    for _, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.special and not (token.lstrip or token.rstrip or token.single_word) and token.content != unknown:
            yield token.content
