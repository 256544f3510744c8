"""Finds the files of a table that lies in a folder: parts, partitions, and what `datasets.save_to_disk` writes.

data-00000-of-00002.arrow ... state.json      Hugging Face datasets; several splits are folders of this form
label=0/part-0.parquet label=1/part-0.parquet Hive: a column's value stands in the name of a folder
split=train/... split=test/...                Hive, too: tables of these names, which have roles as files have
part-00000-....parquet                        Spark
train-00000-of-00002.parquet ...              parts of `train`, beside those of other tables
"""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from tasks.core.errors import UsageError
from tasks.data.file_kinds import split_name

PARTS_OF_ONE = ("data", "part", "")  # names of parts that say nothing of the table
SPLIT_COLUMN = "split"  # of a Hive table whose values are names of tables
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

_PART_NAME = re.compile(r"(?P<table>.*?)-?\d+-of-\d+(?:-[0-9a-f]+)?|(?P<spark>part)-\d+.*|0\d{3,}")


def tables_in(folder: Path) -> dict[str, list[str]]:
    """Return the tables in a folder that have several files, by name: parts side by side, or folders of parts."""
    entries = sorted(folder.iterdir())
    tables = _join_parts(entry for entry in entries if entry.is_file())
    named = {name: parts for name, parts in tables.items() if name not in PARTS_OF_ONE}
    splits: dict[str, list[str]] = {}
    for file in _inside(_partition_files(folder), folder):
        if split := _split_of(file):
            splits.setdefault(split, []).append(str(file))
    folders = {entry.name: parts for entry in entries if entry.is_dir() and (parts := table_parts(entry))}
    return named | (splits or folders)


def table_parts(folder: Path) -> list[str]:
    """Return the files of the one table that a folder is, in their order; none where it is not one.

    Raises:
        UsageError: if one of them is a link that leads out of the folder.
    """
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        return []
    found = _partition_files(folder)
    if any(map(_split_of, found)) and not _split_of(folder / "part"):
        return []
    if not found:
        files = [entry for entry in entries if entry.is_file() and _is_data(entry)]
        tables = _join_parts(files)
        found = [Path(part) for parts in tables.values() for part in parts]
        if len(tables) != 1 or len(found) < len(files) or not set(tables) & {*PARTS_OF_ONE}:
            return []
    return [str(file) for file in _inside(found, folder)]


def partition_values(path: str) -> dict[str, str | None]:
    """Return the columns whose values the names of a file's folders give: label=0/source=x/part.parquet."""
    values: dict[str, str | None] = {}
    for folder in Path(path).parents:
        pair = _partition(folder)
        if pair is None:
            break
        values.setdefault(pair[0], None if pair[1] == NO_VALUE else pair[1])
    return values


def table_path(path: str) -> str:
    """Return the path of the table that a file is a part of: of its folder, or as of one file; `path` if it is one."""
    file = Path(path)
    part = _PART_NAME.fullmatch(split_name(file.name)[0])
    folder = next((folder for folder in file.parents if not _partition(folder)), file.parent)
    if file.suffix == ".parquet" and folder != file.parent:
        return str(folder)
    if not part:
        return path
    table = part["table"] or part["spark"] or ""
    return str(folder) if table in PARTS_OF_ONE else str(folder / f"{table}{file.suffix}")


def table_name(path: str) -> str:
    """Return the name of the table that a file is, or is a part of, without its ending."""
    return split_name(Path(table_path(path)).absolute().name)[0]


def _is_data(file: Path) -> bool:
    """Return whether a file may be data: not a cache that Hugging Face's library left, nor its description."""
    return split_name(file.name)[1] not in ("", "json", "txt") and not file.name.startswith("cache-")


def _join_parts(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return the parts of tables among files, by the tables' names."""
    tables: dict[str, list[str]] = {}
    for file in files:
        stem, format_name = split_name(file.name)
        part = _PART_NAME.fullmatch(stem)
        if format_name and part:
            tables.setdefault(part["table"] or part["spark"] or "", []).append(str(file))
    return tables


def _inside(files: list[Path], folder: Path) -> list[Path]:
    """Return the files of a folder, none of which may be a link that leads out of it."""
    home = folder.resolve()
    for file in files:
        if home not in file.resolve().parents:
            raise UsageError(f"{file} is a link that leads out of the folder; expected a file in it: copy it there")
    return files


def _partition_files(folder: Path) -> list[Path]:
    """Return the files of a Hive table, in their order; a folder split=NAME is one, too."""
    entries = [folder] if _split_of(folder / "part") else sorted(folder.iterdir())
    partitions = [entry for entry in entries if entry.is_dir() and _partition(entry)]
    files = [file for entry in partitions for file in sorted(entry.rglob("*")) if file.is_file() and _is_data(file)]
    return [file for file in files if file.suffix == ".parquet" or _split_of(file)]


def _split_of(file: Path) -> str:
    """Return the name of the table that a file of a Hive table is in: of its folder split=NAME; "" without one."""
    values = partition_values(str(file))
    return next((value.casefold() for name, value in values.items() if value and name.casefold() == SPLIT_COLUMN), "")


def _partition(folder: Path) -> tuple[str, str] | None:
    """Return name and value of a folder NAME=VALUE."""
    name, sign, value = folder.name.partition("=")
    return (unquote(name), unquote(value)) if name and sign else None
