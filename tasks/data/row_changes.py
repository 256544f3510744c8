"""Counts what changed between two snapshots: sentences added, removed and labelled otherwise."""

from typing import TypedDict

import pandas as pd

from tasks.data.snapshots import read_snapshot

EXAMPLES = 3  # sentences of each kind


class RowChanges(TypedDict):
    """Numbers of sentences, and the first of each kind as examples; a repeated sentence counts once."""

    added: int
    removed: int
    relabelled: int
    examples: dict[str, list[str]]


def compare_snapshots(before: str, now: str) -> RowChanges:
    """Compare two snapshots by sentence.

    Args:
        before: path of the earlier one.
        now: path of the later one.

    Raises:
        VerdictError: if one cannot be read.
    """
    old, new = (_labels(read_snapshot(path)) for path in (before, now))
    both = new.index.intersection(old.index)
    found = {
        "added": new.index.difference(old.index, sort=False),
        "removed": old.index.difference(new.index, sort=False),
        "relabelled": both[(old[both] != new[both]).to_numpy()],
    }
    return RowChanges(
        added=len(found["added"]),
        removed=len(found["removed"]),
        relabelled=len(found["relabelled"]),
        examples={kind: [str(sentence) for sentence in each[:EXAMPLES]] for kind, each in found.items()},
    )


def _labels(rows: pd.DataFrame) -> pd.Series:
    """Return a number for the labels of each sentence: 0, 3 for label 1, 2 for one that has both."""
    found = rows["label"].groupby(rows["sentence"], sort=False).agg(["min", "max"]).fillna(-1)  # text has no labels
    return found["min"] + 2 * found["max"]
