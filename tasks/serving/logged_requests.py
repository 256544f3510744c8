"""Reads the request log (request_log.py): what was answered lately, of all servers that share the folder."""

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.errors import UsageError, VerdictError
from tasks.serving.request_log import HOUR_FORMAT, HOUR_NAME, REQUEST_LOG_SCHEMA

ACCEPTABLE = "acceptable"  # the name of label 1
HASHED = "^[0-9a-f]{32}$"  # what is logged instead of a sentence
READ_ATTEMPTS = 3  # a server that merges parts deletes them after they were listed


def read_requests(folder: Path, since: float) -> pa.Table:
    """Return the logged answers since a moment (seconds since 1970), in REQUEST_LOG_SCHEMA's columns, oldest first.

    Raises:
        UsageError: if there is no such folder.
        VerdictError: if a file is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} holds no request log; write one: verdict serve --request-log {folder}")
    first = datetime.datetime.fromtimestamp(since, datetime.UTC)
    hours = sorted(
        path for path in folder.iterdir() if HOUR_NAME.fullmatch(path.name) and path.name >= first.strftime(HOUR_FORMAT)
    )
    table = pa.concat_tables([REQUEST_LOG_SCHEMA.empty_table(), *map(_read_hour, hours)])
    return table.filter(pc.greater_equal(table["time"], pa.scalar(first, pa.timestamp("us", "UTC")))).sort_by("time")


def with_sentences(table: pa.Table) -> pa.Table:
    """Return the answers whose sentences are logged, neither left out nor hashed."""
    return table.filter(pc.invert(pc.match_substring_regex(table["sentence"], HASHED)))


def _read_hour(folder: Path) -> pa.Table:
    for attempt in range(READ_ATTEMPTS):
        try:
            return pa.concat_tables([REQUEST_LOG_SCHEMA.empty_table(), *map(_read_file, _list_files(folder))])
        except FileNotFoundError:
            if attempt == READ_ATTEMPTS - 1:
                raise
    raise AssertionError


def _read_file(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=REQUEST_LOG_SCHEMA, partitioning=None)
    except pa.ArrowInvalid as error:
        raise VerdictError(f"{path} is not a file of a request log; move it away") from error


def _list_files(folder: Path) -> list[Path]:
    """Return the files of an hour, without the parts that a server has merged already."""
    paths = list(folder.glob("*.parquet"))
    merged = {path.name.partition(".parquet")[0] for path in paths if not _is_part(path)}
    return sorted(path for path in paths if not _is_part(path) or path.name.rsplit(".", 2)[0] not in merged)


def _is_part(path: Path) -> bool:
    """Return whether a file's name ends in a number: host names may hold dots."""
    return path.name.split(".")[-2].isdecimal()
