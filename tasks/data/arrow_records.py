"""Reads records of Parquet and of Arrow files: Feather, and what `datasets.save_to_disk` of Hugging Face writes.

A file of a few kilobytes may hold gigabytes, by compression or as one value that many records share, so what it takes
unpacked and written out is bounded, and found before memory is taken.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.core.errors import DataRejected, UsageError, first_line
from tasks.data.compression import EXPANSION, MAX_EXPANDED, expansion_limit
from tasks.data.label_names import reject_reversed
from tasks.data.table_folders import partition_values
from tasks.data.table_format import Record, TableFormat, choose_columns

RECORD_BYTES = 64  # that a record counts beside its text
TEXT_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
PARQUET_BATCH = 10_000  # records of a Parquet file held in memory at a time
ARROW_MAGIC = b"ARROW1\0\0"  # before the stream of messages in an Arrow file; a stream alone has none
STREAM_START = b"\xff\xff\xff\xff"  # of each message
ENDS = {
    ARROW_MAGIC: b"ARROW1",
    STREAM_START: STREAM_START + b"\0\0\0\0",
}  # where it breaks off, it lacks it

# ValueError, ArithmeticError and LookupError: dates and time zones that Python does not have.
_DAMAGED = (pa.ArrowException, OSError, ValueError, ArithmeticError, LookupError, struct.error)


def read_parquet(
    stream: BinaryIO, table_format: TableFormat, path: str, groups: range | None = None
) -> Iterator[Record]:
    """Read the chosen columns of a Parquet table, or of some of its row groups; the first record has number 1.

    Text is read as dictionaries, so that records that share it share it in memory too.

    Raises:
        UsageError: if a required column is missing or nested.
        DataRejected: if the file is damaged or its values take too much.
    """
    try:
        schema = pq.read_schema(stream)
        fixed = {name: value for name, value in partition_values(path).items() if name not in schema.names}
        chosen = _choose(schema, fixed, table_format, path)
        names = list(dict.fromkeys(name for name in chosen.values() if name not in fixed))
        file = pq.ParquetFile(stream, read_dictionary=names)
        left = expansion_limit(stream.seek(0, 2))
        left -= _packed_bytes(file.metadata, names) + RECORD_BYTES * file.metadata.num_rows
        batches = file.iter_batches(PARQUET_BATCH, groups, columns=names) if left >= 0 else iter(())
        yield from _read_batches(batches, chosen, fixed, left, path)
    except _DAMAGED as error:
        raise _damaged(path, "Parquet", error) from error


def count_group_rows(stream: BinaryIO, path: str) -> list[int]:
    """Return the number of records of each row group of a Parquet table.

    Raises:
        DataRejected: if the file is damaged.
    """
    try:
        metadata = pq.read_metadata(stream)
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except _DAMAGED as error:
        raise _damaged(path, "Parquet", error) from error


def read_arrow(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read the chosen columns of an Arrow file, or of a stream in a file.

    Both are read as streams: a file is one between a mark and a list of its parts.

    Raises:
        UsageError: if a required column is missing or nested.
        DataRejected: if the file is damaged or its values take too much.
    """
    try:
        head = stream.read(len(ARROW_MAGIC))
        start = len(ARROW_MAGIC) if head == ARROW_MAGIC else 0
        size = stream.seek(0, 2)
        stream.seek(max(size - len(ARROW_MAGIC), 0))
        tail = stream.read()
        if any(head.startswith(begin) and not tail.endswith(end) for begin, end in ENDS.items()):
            raise pa.ArrowInvalid("it has no end")
        left = expansion_limit(size)
        stream.seek(start)
        left -= sum(_unpacked_bytes(message) for message in pa.ipc.MessageReader.open_stream(stream))
        stream.seek(start)
        reader = pa.ipc.open_stream(stream)
        chosen = _choose(reader.schema, {}, table_format, path)
        yield from _read_batches(reader if left >= 0 else iter(()), chosen, {}, left, path)
    except _DAMAGED as error:
        raise _damaged(path, "Arrow", error) from error


def _read_batches(
    batches: Iterator[pa.RecordBatch], chosen: Mapping[str, str], fixed: Mapping[str, Any], left: int, path: str
) -> Iterator[Record]:
    """Yield the records of batches, whose text may take `left` more bytes; fixed columns have one value."""
    names = list(dict.fromkeys(name for name in chosen.values() if name not in fixed))
    line = 0
    for batch in batches:
        columns = [_column(batch, name) for name in names]
        left -= sum(map(_expanded_bytes, columns))
        if left < 0:
            break
        for values in zip(*map(_to_list, columns), strict=True):
            record, line = {**fixed, **dict(zip(names, values, strict=True))}, line + 1
            yield Record(line, {role: record[name] for role, name in chosen.items()}, record)
    if left < 0:
        raise DataRejected(
            f"the values of {path} take more than {MAX_EXPANDED:,} bytes and {EXPANSION} times the file's size; "
            "expected sentences: write them as .tsv, .csv or .jsonl if they are"
        )


def _choose(schema: pa.Schema, fixed: Mapping[str, Any], table_format: TableFormat, path: str) -> dict[str, str]:
    """Return role -> column; a value of a struct is a column named STRUCT.VALUE, and fixed columns are text."""
    plain = [(field.name, field.type) for field in schema if not _has_values(field.type)]
    nested = {name: kind for name, kind in _values(schema) if name not in schema.names}
    types = nested | dict(plain) | dict.fromkeys(fixed, pa.string())
    chosen = choose_columns([*(name for name, _ in plain), *nested, *fixed], table_format, path)
    if "label" in chosen:
        reject_reversed(_label_names(schema, chosen["label"]), table_format.rules.labels, path)
    for name in chosen.values():
        if pa.types.is_nested(types[name]):
            raise UsageError(
                f"column {name!r} of {path} holds {str(types[name])[:100]}; expected one plain value a record"
            )
    return chosen


def _label_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of labels 0, 1, ... that the library datasets keeps beside a table; none where it has none."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _has_values(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.num_fields)


def _values(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Yield names and types of the values in structs."""
    for field in fields:
        if _has_values(field.type):
            yield from _values(field.type, f"{prefix}{field.name}.")
        elif prefix:
            yield f"{prefix}{field.name}", field.type


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of a batch, or a value of its structs."""
    if name in batch.schema.names:
        return batch.column(name)
    root = next(root for root in batch.schema.names if name.startswith(f"{root}."))
    return pc.struct_field(batch.column(root), name.removeprefix(f"{root}.").split("."))


def _damaged(path: str, kind: str, error: Exception) -> DataRejected:
    return DataRejected(
        f"{path} cannot be read as {kind} ({first_line(error, 200)}); "
        f"expected a whole {kind} file: download or copy it again"
    )


def _packed_bytes(metadata: pq.FileMetaData, names: list[str]) -> int:
    """Return the bytes of columns after decompression, as the file says."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _unpacked_bytes(message: pa.Message) -> int:
    """Return the bytes that the compressed buffers of a message take unpacked, and those of its records.

    Each begins with its length; where it begins stands in the message's metadata, a FlatBuffer that pyarrow does not
    open (https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message).
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    data = memoryview(message.metadata)
    batch = _field(data, struct.unpack_from("<I", data)[0], 2)
    batch += struct.unpack_from("<I", data, batch)[0]
    if message.type == "dictionary":
        batch = _field(data, batch, 1)
        batch += struct.unpack_from("<I", data, batch)[0]
    length, buffers = _field(data, batch, 0), _field(data, batch, 2)
    rows = struct.unpack_from("<q", data, length)[0] if length else 0
    if not _field(data, batch, 3) or not buffers:  # not compressed
        return RECORD_BYTES * rows
    vector = buffers + struct.unpack_from("<I", data, buffers)[0]
    ends = struct.iter_unpack("<qq", data[vector + 4 :][: 16 * struct.unpack_from("<I", data, vector)[0]])
    body = memoryview(message.body)
    return RECORD_BYTES * rows + sum(
        max(struct.unpack_from("<q", body, start)[0], 0) for start, size in ends if size >= 8
    )


def _field(data: memoryview, table: int, number: int) -> int:
    """Return where a field of a FlatBuffer's table stands; 0 where the table has none."""
    names = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, names)[0]
    offset = struct.unpack_from("<H", data, names + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
    return table + offset if offset else 0


def _expanded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column's text if each value is written out."""
    if not isinstance(column, pa.DictionaryArray) or column.type.value_type not in TEXT_TYPES:
        return 0  # was counted with the file's bytes, or is a number
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _to_list(column: pa.Array) -> list[Any]:
    """Return a column's values; equal ones of a dictionary are one object."""
    if not isinstance(column, pa.DictionaryArray):
        return column.to_pylist()
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]
