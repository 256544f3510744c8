"""How an encoder reads the sentences of a snapshot: which it truncates, which are equal to it, what it lacks."""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.data.normalization import SentenceKeys
from tasks.data.snapshots import count_rows, iter_snapshot
from tasks.data.token_limit import longest_input
from tasks.inference.tokenization import load_tokenizer, tokenise

TOKENISED_ROWS = 20_000  # of a snapshot with twice as many or more every k-th row is tokenised, at least so many in all


class EncodedSentences(NamedTuple):
    """What an encoder reads of every `step`-th sentence of a snapshot, N in all; `step` is 1 for all sentences."""

    step: int
    truncated: NDArray[np.bool_]
    """[N]."""
    tokens: NDArray[np.int64]
    """Number of tokens after truncation, special ones included, [N]."""
    keys: SentenceKeys
    """64-bit hash of the token ids after truncation, [N]."""
    unknown: float
    """Share of the word pieces that are not in the vocabulary, between 0 and 1."""


class EncoderView:
    """An encoder's tokenizer, truncating as in training."""

    def __init__(self, encoder: str, max_length: int) -> None:
        """Load the tokenizer.

        Args:
            encoder: folder of the encoder.
            max_length: the setting finetune.max_length, in tokens.

        Raises:
            UsageError: if the encoder has no tokenizer that can be loaded.
        """
        self.limit = longest_input(encoder, max_length)
        self.limited_by = "finetune.max_length" if self.limit == max_length else "the encoder's positions"
        self._tokenizer = load_tokenizer(encoder, self.limit)
        self._unknown = _unknown_id(self._tokenizer)

    def read(self, path: str) -> EncodedSentences:
        """Tokenise the sentences of a snapshot.

        Raises:
            VerdictError: if it cannot be read.
        """
        step, sentences = _sample_rows(path)
        tokens = tokenise(self._tokenizer, sentences)
        keys = pd.util.hash_array(np.array([row.tobytes() for row in tokens.rows()], object), categorize=False)
        pieces = len(tokens.ids) - len(sentences) * self._tokenizer.num_special_tokens_to_add(is_pair=False)
        missing = 0 if self._unknown is None else int((tokens.ids == self._unknown).sum())
        return EncodedSentences(step, tokens.truncated, tokens.lengths, keys, missing / pieces if pieces > 0 else 0.0)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of unknown pieces; None for a byte-level vocabulary, which has none."""
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    return tokenizer.token_to_id(token) if token is not None else model.get("unk_id")


def _sample_rows(path: str) -> tuple[int, list[str]]:
    """Return k and every k-th sentence of a snapshot, about TOKENISED_ROWS of them."""
    step = max(1, count_rows(path) // TOKENISED_ROWS)
    sentences: list[str] = []
    seen = 0
    for batch in iter_snapshot(path, ["sentence"]):
        sentences += batch["sentence"][-seen % step :: step].to_pylist()
        seen += batch.num_rows
    return step, sentences
