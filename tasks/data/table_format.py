"""Which column of a table plays which role: by the names that settings give, else by the default names."""

import csv
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from tasks.core.errors import UsageError
from tasks.data.cola_format import QuarantineReason, Row, RowRules, parse_row

DEFAULT_COLUMNS = {"text": ("sentence", "text"), "label": ("label",), "source": ("source",), "mark": ("mark",)}


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # and their names

Fault = tuple[QuarantineReason, str]


class Record(NamedTuple):
    """One record as it was read.

    Args:
        line: number from 1; of formats without lines, the record's.
        values: by role; empty where there is a fault.
        raw: bytes without the line end; of formats without lines, the values by column.
        fault: why the record cannot be a row.
    """

    line: int
    values: Mapping[str, Any]
    raw: bytes | Mapping[str, Any]
    fault: Fault | None = None


class TableFormat(NamedTuple):
    """How records become rows.

    Args:
        columns: role (text, label, source or mark) -> column name; other roles have their default names.
        rules: what a row must satisfy.
        labelled: whether rows have a label. Without labels only the text column counts.
    """

    columns: Mapping[str, str] = {}
    rules: RowRules = RowRules()
    labelled: bool = True

    @property
    def required(self) -> tuple[str, ...]:
        """Roles that every table must have a column for."""
        return ("text", "label") if self.labelled else ("text",)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles whose columns are read."""
        return tuple(DEFAULT_COLUMNS) if self.labelled else ("text",)


def match_columns(present: Collection[str], table_format: TableFormat) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return role -> column of the roles that are present, and (role, expected name) of the missing ones.

    A column of exactly the name goes before one that differs in case or in spaces around it.
    """
    chosen, missing = {}, []
    for role in table_format.roles:
        named = table_format.columns.get(role)
        candidates = (named,) if named else DEFAULT_COLUMNS[role]
        found = next((name for name in candidates if name in present), None) or _find_folded(candidates, present)
        if found is not None:
            chosen[role] = found
        elif named or role in table_format.required:
            missing.append((role, candidates[0]))
    return chosen, missing


def _find_folded(candidates: Iterable[str], present: Collection[str]) -> str | None:
    """Return the column that has the first of these names in another case; None if there is none, or several."""
    folded = [(name.strip().casefold(), name) for name in present]
    for candidate in candidates:
        found = [name for other, name in folded if other == candidate.strip().casefold()]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def choose_columns(present: Iterable[str], table_format: TableFormat, path: str) -> dict[str, str]:
    """Return role -> column: the named column, else the first default name that is present.

    Raises:
        UsageError: if a required or named column is missing, or a chosen name occurs twice.
    """
    names = list(present)
    chosen, missing = match_columns(names, table_format)
    for role, name in chosen.items():
        if names.count(name) > 1:
            raise UsageError(f"{path} has {names.count(name)} columns {name!r}; expected one for the {role}")
    if missing:
        role, name = missing[0]
        shown = ", ".join(repr(name[:40]) for name in names[:12]) or "none"
        option = ",".join(f"{role}=NAME" for role in table_format.required)
        raise UsageError(f"{path} has no column {name!r} for the {role}; it has {shown}: --columns {option}")
    return chosen


def find_delimiter(first: str, table_format: TableFormat) -> str:
    """Return what separates the columns of a header line: the first delimiter that gives the names; "" for none."""
    for delimiter in DELIMITERS:
        if delimiter in first and not match_columns(_split_header(first, delimiter), table_format)[1]:
            return delimiter
    return ""


def _split_header(first: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([first], delimiter=delimiter), [])
    except csv.Error:
        return []


def is_header(first: bytes, table_format: TableFormat) -> bool:
    """Whether the first line of a tab-separated file is a header; line ends do not matter.

    Labelled files with a header and files in CoLA's format may be merged, so a row of CoLA's format is never a header,
    whatever columns are named; of other lines, the names decide. Of sentences without labels there is one file, and
    where its column is named the first line must have it.
    """
    if not table_format.labelled and "text" in table_format.columns:
        return True
    first = first.rstrip(b"\r\n")
    if isinstance(parse_row(1, first, table_format.rules), Row):
        return False
    names = first.decode("utf-8", "replace").split("\t")
    if table_format.labelled and table_format.columns:
        return len(names) > 1
    return not match_columns(names, table_format)[1]
