"""Tokenises sentences and groups them into batches by length, so that little of a batch is padding.

The mean CoLA sentence has 11.4 tokens: padding every batch to 128 would make 91% of the computation padding.
Shape letters: N sentences, B sentences of a batch, S tokens of its longest sentence.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..core.errors import UsageError, first_line, is_out_of_memory

CHARACTERS_PER_TOKEN = 16  # of a text that is tokenised first where it is truncated; English has four to five
WINDOW = 50  # batches sorted by length together: little padding, and a different order each epoch

TokenIds = NDArray[np.int64]
# In no vocabulary: a tokenizer whose unknown token is not in its own fails at the first such character.
RARE_CHARACTER = "\U000e01ef"


def load_tokenizer(folder: str, max_length: int) -> Tokenizer:
    """Load a model folder's tokenizer, without padding and truncating to `max_length` tokens.

    Raises:
        UsageError: if the folder holds no tokenizer that the library `tokenizers` can represent.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = open_tokenizer(path, max_length) if path.is_file() else _convert_tokenizer(folder, max_length)
        tokenizer.encode(RARE_CHARACTER)
        return tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        if is_out_of_memory(error):
            raise
        reason, remedy = f"({first_line(error)})", "a tokenizer.json that transformers saved: fetch or save it again"
        if path.is_file():
            raise UsageError(f"{str(path)!r} cannot be loaded {reason}; expected {remedy}") from error
        raise UsageError(
            f"tokenizer of {folder!r} cannot be made{_class_of(folder)} {reason}; expected {remedy}"
        ) from error


def _class_of(folder: str) -> str:
    """Return the class that a folder names for its tokenizer, for a message."""
    try:
        named = json.loads((Path(folder) / "tokenizer_config.json").read_bytes())["tokenizer_class"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" by the tokenizer_class {named!r} of tokenizer_config.json"


def open_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """Load a tokenizer.json, whose own rules hold, except its padding and truncation.

    Those two are the settings of whoever used the tokenizer last before it was saved.
    """
    return limit_tokens(Tokenizer.from_file(str(path)), max_length)


def limit_tokens(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """Let a tokenizer truncate to `max_length` tokens, on the right and without overlaps, and not pad; return it."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def copy_unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer of the same rules that neither truncates nor pads, as bundles hold it."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _convert_tokenizer(folder: str, max_length: int) -> Tokenizer:
    """Convert the tokenizer of a folder without tokenizer.json; one that cannot be saved as such a file fails here."""
    from transformers import AutoTokenizer  # needed only here, and not installed for inference

    found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return limit_tokens(copy_unlimited(found.backend_tokenizer), max_length)


class TokenizedText(NamedTuple):
    """Token ids of N sentences in one flat array; start and length of each sentence, [N] in tokens; which were cut."""

    ids: TokenIds
    starts: TokenIds
    lengths: TokenIds
    truncated: NDArray[np.bool_]

    def batch(self, rows: TokenIds, pad_id: int) -> tuple[TokenIds, TokenIds]:
        """Return token ids [B, S] and attention mask [B, S] of rows [B], padded on the right to the longest."""
        lengths = self.lengths[rows, None]
        positions = np.arange(lengths.max())
        mask = positions < lengths
        indices = np.minimum(self.starts[rows, None] + positions, len(self.ids) - 1)
        return np.where(mask, self.ids[indices], pad_id), mask.astype(np.int64)

    def rows(self) -> list[TokenIds]:
        """Return the token ids of each sentence, [S] with its own S."""
        return np.split(self.ids, self.starts[1:]) if len(self.starts) else []


def tokenise(tokenizer: Tokenizer, sentences: Sequence[str]) -> TokenizedText:
    """Tokenise [N] sentences on all cores, with special tokens; not the text far behind the tokenizer's limit."""
    encodings = _encode(tokenizer, list(sentences))
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
    truncated = np.zeros(len(ids), np.bool_)
    if limit := tokenizer.truncation:
        # A sentence that was cut has exactly the limit's length; `overflowing` is slow, it builds objects for the rest.
        for row in np.flatnonzero(lengths == limit["max_length"]):
            truncated[row] = bool(encodings[row].overflowing)
    return TokenizedText(flat, np.cumsum(lengths) - lengths, lengths, truncated)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Encode texts; of one much longer than the limit its beginning, or all of it where that has too few tokens."""
    limit = tokenizer.truncation
    reach = CHARACTERS_PER_TOKEN * limit["max_length"] if limit else 0
    if not limit or all(len(text) <= reach for text in texts) or not _splits_at_spaces(tokenizer):
        return tokenizer.encode_batch_fast(texts)
    encodings = tokenizer.encode_batch_fast([_beginning(text, reach) for text in texts])
    again = [row for row, text in enumerate(texts) if len(text) > reach and not encodings[row].overflowing]
    for row, encoding in zip(again, tokenizer.encode_batch_fast([texts[row] for row in again]), strict=True):
        encodings[row] = encoding
    return encodings


def _beginning(text: str, reach: int) -> str:
    """Return the words within the first `reach` characters; the whole text where there is no space."""
    end = text.rfind(" ", 0, reach) if len(text) > reach else -1
    return text[:end].rstrip(" ") if end > 0 else text


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Return whether a word has the same tokens whatever follows after a space, as with most tokenizers."""
    splitter = tokenizer.pre_tokenizer
    return splitter is not None and len(splitter.pre_tokenize_str("a b")) > 1


def pad(ids: Sequence[TokenIds], pad_id: int) -> tuple[TokenIds, TokenIds]:
    """Stack B sentences into (token ids [B, S], attention mask [B, S]), padded on the right."""
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = np.concatenate(ids)
    return padded, mask.astype(np.int64)


def shuffled_batches(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Divide N sentences into batches of similar length, in random order.

    Sentences are shuffled, sorted by length inside windows of `WINDOW` batches and cut into batches; then the batches
    are shuffled.

    Args:
        lengths: [N], in tokens.
        batch_size: sentences.
        rng: the only source of the order.

    Returns:
        Sentence indices of each batch; every sentence comes once.
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
    """Divide N sentences into batches of indices from short to long, for evaluation and prediction."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
