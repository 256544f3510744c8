"""Which column of a table plays which role: by the names that settings give, else by the default names."""

import csv
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from tasks.core.errors import UsageError
from tasks.data.cola_format import QuarantineReason, Row, RowRules, parse_row
from tasks.data.label_names import find_label

DEFAULT_COLUMNS = {"text": ("sentence", "text"), "label": ("label",), "source": ("source",), "mark": ("mark",)}
# Words in the names of columns that are likely meant, for the option that a message proposes.
LIKELY_WORDS = {
    "text": {"sentence", "text", "comment", "review", "content", "utterance", "phrase", "tweet", "message", "body"},
    "label": {"label", "rating", "class", "target", "acceptable", "acceptability", "judgment", "gold", "sentiment"},
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # and their names
_WORD = re.compile(r"[a-z]+")

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
        option = _propose_columns(names, chosen, table_format)
        others = "; if it has no labels, name the files that have: --data FILE" if role == "label" else ""
        raise UsageError(f"{path} has no column {name!r} for the {role}; it has {shown}: --columns {option}{others}")
    return chosen


def _propose_columns(names: list[str], chosen: Mapping[str, str], table_format: TableFormat) -> str:
    """Return what to give as --columns: a column that is likely meant, or NAME."""
    pairs = []
    for role in table_format.required:
        others = [name for name in names if name not in chosen.values()]
        likely = [name for name in others if LIKELY_WORDS[role].intersection(_WORD.findall(name.lower()))]
        found = chosen.get(role) or (likely[0] if len(likely) == 1 else "NAME")
        pairs.append(f"{role}={found if found.isprintable() and not set(found) & set(',=') else 'NAME'}")
    return shlex.quote(",".join(pairs))


def number_columns(first: list[str], table_format: TableFormat) -> list[str] | None:
    """Return the numbers of the columns, from 1, as their names, where the user names them so: text=4,label=2.

    A table whose header has these names has a header.
    """
    columns = table_format.columns
    if not set(table_format.required) <= set(columns) or not all(map(str.isdecimal, columns.values())):
        return None
    return [str(number) for number, _ in enumerate(first, 1)] if match_columns(first, table_format)[1] else None


def reject_missing_header(first: list[str], table_format: TableFormat, path: str) -> None:
    """Reject a first line that has none of the names, and seems to be a row: of a sentence, or with a label.

    Raises:
        UsageError: which proposes the numbers of its columns.
    """
    chosen, missing = match_columns(first, table_format)
    labels = [number for number, cell in enumerate(first, 1) if find_label(cell, table_format.rules.labels) is not None]
    sentences = [cell for cell in first if cell.count(" ") > 1 and cell.rstrip().endswith((".", "!"))]
    if missing and not chosen and (labels or sentences):
        if table_format.labelled and len(first) == 1:
            raise UsageError(
                f"{path} has one column ({first[0][:40]!r}); expected a label beside each sentence: add a column, "
                "or give sentences without labels as --set data.text=FILE"
            )
        text = 1 + first.index(max(first, key=len))
        label = next((str(number) for number in reversed(labels) if number != text), "")
        label = label or (str(3 - text) if len(first) == 2 else "NUMBER")
        option = f"text={text},label={label}" if table_format.labelled else f"text={text}"
        shown = ", ".join(repr(cell[:40]) for cell in first[:12])
        raise UsageError(
            f"{path} seems to have no header, its first line is a row ({shown}); "
            f"expected the names of the columns, or their numbers: --columns {option}"
        )


def find_delimiter(first: str, table_format: TableFormat) -> str:
    """Return what separates the columns of a first line: the first delimiter that gives the names; "" for none.

    Of columns that are named by their numbers, it is the one that gives a label.
    """
    cells = {delimiter: _split_header(first, delimiter) for delimiter in DELIMITERS if delimiter in first}
    for delimiter, names in cells.items():
        if not match_columns(names, table_format)[1]:
            return delimiter
    for delimiter, row in cells.items():
        numbers = number_columns(row, table_format)
        label = table_format.columns.get("label", "") if table_format.labelled else ""
        if numbers and label in numbers and find_label(row[int(label) - 1], table_format.rules.labels) is not None:
            return delimiter
    return ""


def guess_delimiter(first: str, table_format: TableFormat) -> str:
    """Return what likely separates the columns of a first line: what gives a label, else what gives most of them."""

    def likeliness(delimiter: str) -> tuple[bool, int]:
        cells = _split_header(first, delimiter)
        return any(find_label(cell, table_format.rules.labels) is not None for cell in cells), len(cells)

    return max(DELIMITERS, key=likeliness)


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
