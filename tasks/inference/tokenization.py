"""Tokenises sentences once and groups them by length, so that little of a batch is padding.

On CoLA the mean sentence has 11.4 tokens; padding each batch to 128, as the book does, makes 91% of the work padding.
Shape letters: N sentences, B sentences of a batch, S tokens of its longest sentence.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..core.errors import UsageError, first_line

WINDOW = 50  # batches sorted together: nearly no padding, and still another order each epoch

TokenIds = NDArray[np.int64]


def load_tokenizer(folder: str, max_length: int) -> Tokenizer:
    """Load a model folder's tokeniser, cutting off at `max_length` tokens and never padding.

    Raises:
        WrongUsage: if the folder holds no tokeniser that can be written as one file.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _convert_tokenizer(folder)
    except Exception as error:  # tokenizers raises bare Exception
        raise UsageError(
            f"tokeniser of {folder!r} cannot be loaded ({first_line(error)}); expected a tokenizer.json"
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _convert_tokenizer(folder: str) -> Tokenizer:
    """Build the fast tokeniser of a folder that holds only the slow one's files."""
    from transformers import AutoTokenizer  # needed for such folders alone

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[TokenIds]:
    """Tokenise [N] sentences, special tokens included; each result is [S] with its own S."""
    return [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch_fast(list(sentences))]


class TokenizedText(NamedTuple):
    """Tokens of N sentences in one array, and where each begins and how many it has: quick to make and to gather."""

    ids: TokenIds
    starts: TokenIds
    lengths: TokenIds

    def batch(self, rows: TokenIds, pad_id: int) -> tuple[TokenIds, TokenIds]:
        """Return token ids [B, S] and attention mask [B, S] of rows [B], padded on the right to the longest."""
        lengths = self.lengths[rows, None]
        places = np.arange(lengths.max())
        mask = places < lengths
        at = np.minimum(self.starts[rows, None] + places, len(self.ids) - 1)
        return np.where(mask, self.ids[at], pad_id), mask.astype(np.int64)


def tokenise(tokenizer: Tokenizer, sentences: Sequence[str]) -> TokenizedText:
    """Tokenise [N] sentences, on as many cores as there are, special tokens included."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(sentences))]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
    return TokenizedText(flat, np.cumsum(lengths) - lengths, lengths)


def pad(ids: Sequence[TokenIds], pad_id: int) -> tuple[TokenIds, TokenIds]:
    """Stack B sentences into (token ids [B, S], attention mask [B, S]), padded on the right."""
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = np.concatenate(ids)
    return padded, mask.astype(np.int64)


def shuffled_batches(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Divide [N] sentences into batches of like length, in random order.

    Sentences are shuffled, sorted by length inside windows of `WINDOW` batches, cut into batches, and the batches are
    shuffled: every sentence comes once.
    """
    order = rng.permutation(len(lengths))
    window = WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Divide [N] sentences into batches in the order of their lengths, for measuring and predicting."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def packed_batches(lengths: TokenIds, rows: int, row: int) -> list[TokenIds]:
    """Divide [N] sentences, longest first, into batches that fill rows of tokens whole but for the last.

    Args:
        lengths: [N], in tokens.
        rows: of a batch.
        row: tokens that sentences of like length lie side by side in; a longer one takes the place of several rows.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        count = rows * (row // longest) or max(1, rows * row // longest)
        batches.append(order[start : start + count])
        start += count
    return batches
