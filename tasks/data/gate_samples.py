"""Picks sample sentences of each quality issue, for the gate's page: equal sentences side by side."""

from collections.abc import Iterable
from typing import TypedDict, cast

import numpy as np
import pandas as pd

from tasks.data.row_features import IssueKind
from tasks.data.snapshots import iter_snapshot

MAX_SAMPLES = 5  # groups of rows of one issue
MAX_EQUAL = 3  # rows of a group


class SampleRow(TypedDict):
    """A row of a snapshot."""

    role: str
    file: str
    line: int
    label: int
    sentence: str


Samples = dict[str, dict[IssueKind, list[list[SampleRow]]]]  # by role and issue: groups of rows that belong together
RowKeys = list[tuple[str, int]]  # role and position of each row of a group


def pick_samples(rows: dict[str, pd.DataFrame], paths: dict[str, str]) -> Samples:
    """Return the first rows of each issue; of duplicates, conflicts and leaks those with the same normalised sentence.

    Args:
        rows: features of each role, with the columns of `flag_duplicates` and `flag_leakage`.
        paths: of the snapshots.
    """
    picked = {role: _pick(role, rows) for role in rows}
    groups = [group for issues in picked.values() for found in issues.values() for group in found]
    read = {role: _read_rows(role, path, _positions(groups, role)) for role, path in paths.items()}
    return {
        f"{role} rows": {
            kind: [[read[name][at] for name, at in group] for group in found] for kind, found in issues.items()
        }
        for role, issues in picked.items()
    }


def _pick(role: str, rows: dict[str, pd.DataFrame]) -> dict[IssueKind, list[RowKeys]]:
    own, train = rows[role], rows["training"]
    flagged: dict[IssueKind, str] = {"control": "control", "truncated": "truncated"}
    found: dict[IssueKind, list[RowKeys]] = {
        kind: [[(role, at)] for at in _first(own[column].fillna(0) == 1)]
        for kind, column in flagged.items()
        if column in own
    }
    keys = own["normalised_key"]
    conflicting = own["conflicting"] if "conflicting" in own else pd.Series(False, index=own.index)
    found["duplicate"] = _group(role, keys, _first_keys(keys[keys.duplicated() & ~conflicting]))
    found["conflict"] = _group(role, keys, _first_keys(keys[conflicting]))
    if role != "training":
        leaked = _first(own["leaked"])
        twins = (np.flatnonzero(train["normalised_key"] == keys[at]) for at in leaked)
        found["leak"] = [[(role, at), ("training", int(twin[0]))] for at, twin in zip(leaked, twins, strict=True)]
    return {kind: groups for kind, groups in found.items() if groups}


def _first(flags: pd.Series) -> list[int]:
    return [int(at) for at in np.flatnonzero(flags)[:MAX_SAMPLES]]


def _first_keys(keys: pd.Series) -> list[int]:
    return list(keys.drop_duplicates()[:MAX_SAMPLES])


def _group(role: str, keys: pd.Series, chosen: list[int]) -> list[RowKeys]:
    return [[(role, int(at)) for at in np.flatnonzero(keys == key)[:MAX_EQUAL]] for key in chosen]


def _positions(groups: Iterable[RowKeys], role: str) -> list[int]:
    return sorted({at for group in groups for name, at in group if name == role})


def _read_rows(role: str, path: str, positions: list[int]) -> dict[int, SampleRow]:
    """Read the rows at ascending positions of a snapshot, up to the last of them."""
    read: dict[int, SampleRow] = {}
    begin = 0
    for batch in iter_snapshot(path, ["file", "line", "label", "sentence"]) if positions else ():
        here = [at for at in positions if begin <= at < begin + batch.num_rows]
        for at, row in zip(here, batch.take([at - begin for at in here]).to_pylist(), strict=True):
            read[at] = cast(SampleRow, {"role": role, **row})
        begin += batch.num_rows
        if begin > positions[-1]:
            break
    return read
