"""CSV files that a spreadsheet opens without running what a cell holds.

Excel and LibreOffice take a cell that begins with =, +, -, @ or a control character for a formula, quoted or not. Such
a text gets an apostrophe in front, as OWASP advises: https://owasp.org/www-community/attacks/CSV_Injection. The byte
order mark at the beginning tells Excel that the file is UTF-8; pandas and Python's `utf-8-sig` skip it.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.core.files import atomic_write

FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are the full-width forms of the first


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, every cell in quotes.

    Args:
        path: of the file, which is replaced.
        header: names of the columns.
        rows: cells; texts that a spreadsheet would calculate are disarmed.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows([disarm(cell) for cell in row] for row in rows)


def disarm(cell: Any) -> Any:
    """Return a cell that no spreadsheet calculates: a text that looks like a formula begins with an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell
