"""The share of the data's word pieces that an encoder's vocabulary does not have."""

import json

from tokenizers import Tokenizer

from tasks.data.snapshots import count_rows, iter_snapshot
from tasks.inference.tokenization import load_tokenizer

COVERAGE_SAMPLE_ROWS = 20_000  # spread over the snapshot


def unk_rate(path: str, encoder: str) -> float:
    """Return the share of a snapshot's word pieces that the encoder's vocabulary does not have, between 0 and 1.

    Args:
        path: a snapshot; of a large one every k-th row is read.
        encoder: folder of the encoder.

    Raises:
        UsageError: if the encoder has no tokenizer that can be loaded.
        VerdictError: if the snapshot cannot be read.
    """
    tokenizer = load_tokenizer(encoder, max_length=512)
    unknown = _unknown_id(tokenizer)
    if unknown is None:  # a byte-level vocabulary
        return 0.0
    pieces = missing = 0
    for encoding in tokenizer.encode_batch_fast(_sample_rows(path), add_special_tokens=False):
        pieces += len(encoding.ids)
        missing += encoding.ids.count(unknown)
    return missing / pieces if pieces else 0.0


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    return tokenizer.token_to_id(token) if token is not None else model.get("unk_id")


def _sample_rows(path: str) -> list[str]:
    """Return every k-th sentence of a snapshot, about COVERAGE_SAMPLE_ROWS of them."""
    step = max(1, count_rows(path) // COVERAGE_SAMPLE_ROWS)
    sentences: list[str] = []
    seen = 0
    for batch in iter_snapshot(path, ["sentence"]):
        sentences += batch["sentence"][-seen % step :: step].to_pylist()
        seen += batch.num_rows
    return sentences
