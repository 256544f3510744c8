"""How the settings under `data` read files, and a look at the beginning of each before anything starts."""

from pathlib import Path

from tasks.core.settings import DataSettings
from tasks.data.cola_format import DEFAULT_LABELS, RowRules
from tasks.data.record_readers import parse_file
from tasks.data.snapshots import os_errors_explained
from tasks.data.sources import Sources
from tasks.data.table_format import TableFormat


def make_table_format(settings: DataSettings) -> TableFormat:
    """Return the columns, labels and limits that the settings name."""
    return TableFormat(settings.columns, RowRules(settings.max_chars, DEFAULT_LABELS | settings.labels))


def check_columns(sources: Sources, settings: DataSettings) -> None:
    """Read the beginning of each file, and write nothing.

    Raises:
        UsageError: if one lacks a required column, or is no table.
        DataRejected: if one is damaged.
        VerdictError: if one cannot be read.
    """
    files = (*sources["train"], *sources["holdout"], *sources["secondary"])
    with os_errors_explained(files, ""):
        for file in files:
            next(parse_file(Path(file), make_table_format(settings)), None)
