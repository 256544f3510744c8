"""Decides what validation keeps together where `data.group` is auto: whole sources, if the holdout is by other sources.

Validation selects the epoch, and recipes are compared by it, so it shall be as unlike the training rows as the holdout
is. Measured on CoLA, whose holdout is by other authors, in tests/benchmarks/README.md: whole sources rank models more
as the holdout does than sentences chosen by a hash.
"""

from collections import Counter
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from tasks.data.snapshots import iter_snapshot
from tasks.data.splitting import Group, validation_sources

FEWEST_SOURCES = 10  # below it one source is a large part of what could be learned
FEWEST_ROWS = 50  # of each label on each side; fewer say little about a model
UNSEEN_SHARE = 0.5  # of the holdout's rows

GroupSetting = Literal["auto", "sentence", "source"]


class GroupChoice(NamedTuple):
    """What validation keeps together, and why."""

    group: Group
    reason: str


def choose_group(setting: GroupSetting, train: str, holdout: str, validation_share: float, seed: int) -> GroupChoice:
    """Return what validation keeps together.

    Args:
        setting: auto: whole sources, if most rows of the holdout are of sources that have no training row, and the
            training rows have enough sources and labels to keep some apart; otherwise sentences.
        train: snapshot of the training rows.
        holdout: snapshot of the holdout that decides.
        validation_share: expected share of sentences that go to validation.
        seed: key of the hash that chooses sources.

    Raises:
        VerdictError: if a snapshot cannot be read.
    """
    if setting != "auto":
        return GroupChoice(setting, f"data.group={setting}")
    rows = _count(train, ["source", "label"])
    by_source = Counter[str]()
    for (source, _), count in rows.items():
        by_source[source] += count
    unseen = Counter[bool]()
    for (source,), count in _count(holdout, ["source"]).items():
        unseen[source not in by_source] += count
    if unseen[True] <= UNSEEN_SHARE * unseen.total():
        reason = f"{unseen[False]} of {unseen.total()} holdout rows are of the training's sources"
        return GroupChoice("sentence", reason)
    if len(by_source) < FEWEST_SOURCES:
        return GroupChoice("sentence", f"{len(by_source)} sources are fewer than {FEWEST_SOURCES}")
    chosen = set(validation_sources(by_source, validation_share, seed))
    sides = Counter[tuple[bool, int]]()
    for (source, label), count in rows.items():
        sides[source in chosen, label] += count
    fewest = min(sides[side, label] for side in (False, True) for label in (0, 1))
    if fewest < FEWEST_ROWS:
        return GroupChoice("sentence", f"by source a side would have {fewest} rows of a label, under {FEWEST_ROWS}")
    return GroupChoice("source", f"{unseen[True]} of {unseen.total()} holdout rows are of sources not trained on")


def _count(path: str, columns: list[str]) -> Counter[tuple[Any, ...]]:
    """Count a snapshot's rows by the values of columns."""
    counts = Counter[tuple[Any, ...]]()
    for batch in iter_snapshot(path, columns):
        found = pa.Table.from_batches([batch]).group_by(columns).aggregate([([], "count_all")])
        for row in found.to_pylist():
            counts[tuple(row[name] for name in columns)] += row["count_all"]
    return counts
