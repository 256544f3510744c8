"""Checks that serving gives sentences the token ids that they were trained with.

Shape letters: N sentences.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from tokenizers import Tokenizer

from tasks.core.errors import UsageError
from tasks.data.snapshots import iter_snapshot
from tasks.inference.bulk_tokenizer import BulkTokenizer
from tasks.inference.tokenization import TokenizedText, copy_unlimited, limit_tokens, tokenise

CHECKED_SENTENCES = 200


def sample_sentences(path: str) -> list[str]:
    """Return the first `CHECKED_SENTENCES` of a snapshot.

    Raises:
        VerdictError: if it cannot be read.
    """
    batch = next(iter_snapshot(path, ["sentence"], CHECKED_SENTENCES), None)
    return batch["sentence"].to_pylist() if batch else []


def check_saved(tokenizer: Tokenizer, max_length: int, sentences: Sequence[str]) -> None:
    """Check that what is saved of a tokenizer gives sentences the tokens that they are trained with.

    Raises:
        UsageError: if not.
    """
    saved = limit_tokens(copy_unlimited(tokenizer), max_length)
    check_tokens(sentences, {"training": tokenise(tokenizer, sentences), "what is saved": tokenise(saved, sentences)})


def check_serving(tokenizer: Tokenizer, served: Tokenizer, sentences: Sequence[str]) -> None:
    """Check that a bundle's tokenizer gives sentences the tokens that the model has them from, alone and in bulk.

    Args:
        tokenizer: of the model, as the comparison of graphs with torch uses it.
        served: of the bundle, as serving loads it.
        sentences: [N].

    Raises:
        UsageError: if not.
    """
    tokens = {"the export": tokenise(tokenizer, sentences), "serving": tokenise(served, sentences)}
    if bulk := BulkTokenizer.create(served):
        tokens["serving of many sentences"] = bulk.tokenise(sentences)
    check_tokens(sentences, tokens)


def check_tokens(sentences: Sequence[str], tokens: Mapping[str, TokenizedText]) -> None:
    """Check that sentences have the same tokens wherever they are tokenised.

    Args:
        sentences: [N].
        tokens: of these sentences, by where they are tokenised; all have to equal the first.

    Raises:
        UsageError: which names the sentence and the first token that differs.
    """
    (first, expected), *others = tokens.items()
    for name, found in others:
        for sentence, own, other in zip(sentences, expected.rows(), found.rows(), strict=True):
            if not np.array_equal(own, other):
                pairs = enumerate(zip_longest(own.tolist(), other.tolist(), fillvalue="none"), start=1)
                at, (one, two) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
                raise UsageError(
                    f"sentence {sentence[:80]!r}: the id of token {at} is {one} in {first} and {two} in {name}; "
                    "expected the same: a tokenizer.json that divides a sentence in one way (without dropout)"
                )


def lost_capitals(tokenizer: Tokenizer) -> int:
    """Return how many words of a vocabulary have capitals, where the tokenizer lower-cases and cannot give them."""
    normalizer = tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("A") != normalizer.normalize_str("a"):
        return 0
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    words = tokenizer.get_vocab(with_added_tokens=False).keys() - special
    return sum(word != word.lower() for word in words)
