"""Sketches of sets of sentences: a few hundred bytes that say how many sentences two sets share.

A sketch has the number of different sentences and the smallest of their hashes (bottom-k sampling: Broder 1997,
https://doi.org/10.1109/SEQUEN.1997.666900). Sets with at most SKETCH_SIZE sentences together are compared exactly; of
larger ones the share of equal hashes among the smallest estimates that of equal sentences, with a standard error of at
most 0.05.
"""

import base64
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.data.normalization import sentence_keys
from tasks.data.snapshots import iter_snapshot

SKETCH_SIZE = 128  # hashes
HASH_BYTES = 5  # that are kept of each, the first ones


class Sketch(NamedTuple):
    """What is known of a set of sentences."""

    size: int
    """Different sentences, after normalisation."""
    smallest: NDArray[np.uint64]
    """[K], the K smallest hashes in ascending order, K at most SKETCH_SIZE."""


def sketch_snapshot(path: str) -> str:
    """Return the sketch of a snapshot's sentences as text: their number, a colon, and hashes in base64.

    Raises:
        VerdictError: if the snapshot cannot be read.
    """
    keys = np.unique(np.concatenate([np.zeros(0, np.uint64), *map(_keys, iter_snapshot(path, ["sentence"]))]))
    first = keys[:SKETCH_SIZE].astype(">u8").view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES]
    return f"{len(keys)}:{base64.b64encode(first.tobytes()).decode()}"


def estimate_overlap(one: str, other: str) -> float:
    """Estimate how many of the smaller set's sentences the other has, from 0 to 1; 0 where a text is no sketch."""
    first, second = _parse(one), _parse(other)
    if not first or not second or not min(first.size, second.size):
        return 0.0
    union = np.union1d(first.smallest, second.smallest)[:SKETCH_SIZE]
    alike = float(np.isin(union, np.intersect1d(first.smallest, second.smallest)).mean())  # share of the union
    shared = alike / (1 + alike) * (first.size + second.size)
    return min(1.0, shared / min(first.size, second.size))


def _keys(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    return sentence_keys(batch["sentence"])


def _parse(text: str) -> Sketch | None:
    count, _, hashes = text.partition(":")
    try:
        raw = np.frombuffer(base64.b64decode(hashes, validate=True), np.uint8).reshape(-1, HASH_BYTES)
    except ValueError:
        return None
    if not count.isdecimal():
        return None
    padded = np.zeros((len(raw), 8), np.uint8)
    padded[:, 8 - HASH_BYTES :] = raw
    return Sketch(int(count), padded.view(">u8").astype(np.uint64).ravel())
