"""The champions of a model over time, as the report shows them.

The MCC of two is compared only where both were measured on the same holdout: only those are joined by a line.
"""

from collections.abc import Sequence
from typing import NamedTuple

MAX_CHAMPIONS = 20  # the latest ones


class PastChampion(NamedTuple):
    """A version that became champion: when, by what kind of change, and its figures when it was judged.

    The figures are None where its run was deleted, `time` is None where no record says when the alias moved.
    """

    version: str
    time: str | None
    kind: str
    mcc: float | None
    low: float | None
    high: float | None
    holdout: str
    dataset: str


def comparable_spans(champions: Sequence[PastChampion]) -> list[list[int]]:
    """Return the positions of successive champions with figures that were measured on the same holdout."""
    spans: list[list[int]] = []
    known = [position for position, each in enumerate(champions) if each.mcc is not None]
    for position in known:
        if spans and champions[spans[-1][-1]].holdout == champions[position].holdout:
            spans[-1].append(position)
        else:
            spans.append([position])
    return spans
