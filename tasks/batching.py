"""Tokenises sentences once and groups them by length, so that little of a batch is padding.

On CoLA the mean sentence has 11.4 tokens; padding each batch to 128, as the book does, makes 91% of the work padding.
Shape letters: N sentences, B sentences of a batch, S tokens of its longest sentence.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.errors import WrongUsage

WINDOW = 50  # batches sorted together: nearly no padding, and still another order each epoch

Ids = NDArray[np.int64]


def load_tokenizer(folder: str, max_length: int) -> Tokenizer:
    """Load a model folder's tokeniser, cutting off at `max_length` tokens and never padding.

    Raises:
        WrongUsage: if the folder holds no tokeniser that can be written as one file.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else _convert_tokenizer(folder)
    except Exception as error:  # tokenizers raises bare Exception
        first = str(error).strip().splitlines()[0]
        raise WrongUsage(f"tokeniser of {folder!r} cannot be loaded ({first}); expected a tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _convert_tokenizer(folder: str) -> Tokenizer:
    """Build the fast tokeniser of a folder that holds only the slow one's files."""
    from transformers import AutoTokenizer  # needed for such folders alone

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[Ids]:
    """Tokenise [N] sentences, special tokens included; each result is [S] with its own S."""
    return [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch_fast(list(sentences))]


def pad(ids: Sequence[Ids], pad_id: int) -> tuple[Ids, Ids]:
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
