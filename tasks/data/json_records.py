"""Reads the records of JSON: one object a line (JSONL), or a list of objects (`[{...}, {...}]`)."""

import codecs
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from tasks.core.errors import DataRejected, UsageError
from tasks.data.cola_format import BYTE_ORDER_MARK, numbered_lines, unmarked_lines
from tasks.data.table_format import Fault, Record, TableFormat, choose_columns, match_columns

MAX_JSON_BYTES = 4 << 20  # of a record: parsed, it takes up to forty times as much memory
PEEK_RECORDS = 1_000  # JSON objects of which at least one has the columns, where they are named correctly
MAX_NAME_DEPTH = 8  # of nested values that have names: a.b.c has three
LIST_READ_BYTES = 1 << 16  # of a list read at a time, at least

MAX_KNOWN_COLUMNS = 64  # sets of keys whose columns are kept: most files have one

Columns = tuple[dict[str, str], list[tuple[str, str]]]
KnownColumns = dict[tuple[str, ...], Columns]

_DECODE = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")
_ONE_A_LINE = "expected a list of objects, or one object a line"
# A whole table as one value: what begins it, what it is, and pandas' name for it.
_TABLES = tuple(
    (re.compile(rb"\s*" + start), kind, orient)
    for start, kind, orient in (
        (rb'\{\s*"columns"\s*:\s*\[', "names of columns and lists of values", "split"),
        (rb'\{\s*"schema"\s*:\s*\{\s*"fields"', "a schema and its rows", "table"),
        (rb'\{\s*"-?\d+"\s*:\s*\{', "an object of numbered rows", "index"),
        (rb'\{\s*"[^"]*"\s*:\s*\{\s*"-?\d+"\s*:', "an object of columns", "columns"),
        (rb'\{\s*"[^"]*"\s*:\s*\[(?!\s*[\]{])', "an object of lists", "list"),
        (rb"\[\s*\[", "lists of values without names", "values"),
    )
)
_STRING = rb'"(?:[^"\\]|\\.)*"'
_WRAPPER = re.compile(  # scalars, then a list of objects
    rb"\s*\{\s*(?P<before>(?:" + _STRING + rb"\s*:\s*(?:" + _STRING + rb"|[\w.+-]+)\s*,\s*)*)"
    rb'"(?P<key>\w+)"\s*:\s*\[\s*\{'
)
_LONG_OBJECT = re.compile(rb"\s*\{[ \t]*\r?\n")


class _Item(NamedTuple):
    """A JSON value: number from 1, value, bytes or what becomes them, fault."""

    line: int
    value: Any
    raw: bytes | Mapping[str, Any]
    fault: Fault | None = None


def reject_whole_table(stream: BinaryIO, head: bytes, table_format: TableFormat, path: str) -> None:
    """Reject JSON of one value that holds a whole table: as pandas writes it, or as a list in an object.

    Args:
        stream: of the file, from its start; its second line distinguishes one value from one object a line.
        head: first bytes of the file.
        table_format: names of the columns: an object that has the text is a record.
        path: for the message.

    Raises:
        UsageError: which names the form and the command that writes one object a line.
    """
    head = head.removeprefix(BYTE_ORDER_MARK)
    found = next(((kind, orient) for start, kind, orient in _TABLES if start.match(head)), None)
    wrapper = _WRAPPER.match(head)
    long = _LONG_OBJECT.match(head)
    if not (found or wrapper or long):
        return
    lines = unmarked_lines(stream)
    if not long and not head.lstrip().startswith(b"[") and next(lines, b"") and next(lines, b"").strip():
        return
    if found:
        kind, orient = found
        form = "" if orient in ("columns", "list") else f', orient="{orient}"'
        script = f'pandas.read_json({json.dumps(path)}{form}).to_json("data.jsonl", orient="records", lines=True)'
        raise UsageError(
            f"{path} is JSON of {kind} (orient={orient!r} of pandas); {_ONE_A_LINE}: "
            f"python -c {shlex.quote(f'import pandas; {script}')}"
        )
    key = wrapper["key"].decode() if wrapper else "KEY"
    before = re.findall(_STRING + rb"(?=\s*:)", wrapper["before"]) if wrapper else []
    if "text" not in match_columns([name[1:-1].decode("utf-8", "replace") for name in before], table_format)[0]:
        raise UsageError(
            f"{path} is one JSON object{' with a list in it' if wrapper else ''}; {_ONE_A_LINE}: "
            f"jq -c '.{key}[]' {shlex.quote(path)} > data.jsonl"
        )


def read_jsonl(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read one JSON object a line. Blank lines are no records."""
    items = (_parse_line(line, raw) for line, raw in numbered_lines(stream) if raw.strip())
    return _pick_values(items, table_format, path)


def read_json_list(stream: BinaryIO, table_format: TableFormat, path: str) -> Iterator[Record]:
    """Read a list of JSON objects, a piece at a time.

    Raises:
        DataRejected: if it breaks off or is damaged, because the beginning of the next object is not known then.
    """
    return _pick_values(_list_items(stream, path), table_format, path)


def flatten(values: Mapping[str, Any], depth: int = MAX_NAME_DEPTH) -> dict[str, Any]:
    """Return the values of nested objects by their names joined with dots: {"a": {"b": 1}} has "a.b"."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and depth > 1:
            flat |= {f"{name}.{below}": inner for below, inner in flatten(value, depth - 1).items()}
        else:
            flat[name] = value
    return flat


def _pick_values(items: Iterator[_Item], table_format: TableFormat, path: str) -> Iterator[Record]:
    """Take the columns of each object; objects may have keys of their own.

    If none of the first PEEK_RECORDS has the columns, they are named wrongly and the first object's keys are shown.
    """
    first: dict[str, Any] | None = None
    matched = False
    known: KnownColumns = {}
    for number, (line, values, raw, fault) in enumerate(items, start=1):
        if fault is None:
            first = values if first is None else first
            values, fault = _choose_values(values, table_format, known)
            matched = matched or fault is None
        if number == PEEK_RECORDS and first is not None and not matched:
            choose_columns(flatten(first), table_format, path)
        yield Record(line, values, raw, fault)
    if first is not None and not matched:
        choose_columns(flatten(first), table_format, path)


def _choose_values(
    values: dict[str, Any], table_format: TableFormat, known: KnownColumns
) -> tuple[dict[str, Any], Fault | None]:
    """Return an object's values by role; keys with dots in them go before names of nested values."""
    chosen, missing = _match(values, table_format, known)
    if missing and any(isinstance(value, dict) for value in values.values()):
        values = flatten(values) | values
        chosen, missing = _match(values, table_format, known)
    fault: Fault | None = ("field count", f"no {missing[0][1]!r}") if missing else None
    return {role: values[name] for role, name in chosen.items()}, fault


def _match(values: dict[str, Any], table_format: TableFormat, known: KnownColumns) -> Columns:
    """Match the columns, as for the last object with the same keys."""
    names = tuple(values)
    if names not in known:
        if len(known) >= MAX_KNOWN_COLUMNS:
            known.clear()
        known[names] = match_columns(names, table_format)
    return known[names]


def _parse_line(line: int, raw: bytes) -> _Item:
    """Parse a line as a JSON object."""
    if len(raw) > MAX_JSON_BYTES:
        return _Item(line, {}, raw, ("too long", f"JSON of more than {MAX_JSON_BYTES} bytes"))
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return _Item(line, {}, raw, ("encoding", "not UTF-8"))
    except (ValueError, RecursionError):
        value = None
    return _Item(line, value, raw) if isinstance(value, dict) else _Item(line, {}, raw, NO_OBJECT)


NO_OBJECT: Fault = ("record", "not a JSON object")


def _list_items(stream: BinaryIO, path: str) -> Iterator[_Item]:
    """Parse the values of a list; the text that is held is at most a record and what is read at a time."""
    text = _Text(stream, path)
    text.skip("[")
    number = 0
    while not text.at("]"):
        if number:
            text.skip(",")
            if text.at("]"):
                raise text.damaged(number, "a comma before its end")
        number += 1
        value = text.parse(number)
        if isinstance(value, dict):
            yield _Item(number, value, value)
        else:
            yield _Item(number, {}, json.dumps(value).encode(), NO_OBJECT)
    text.skip("]")
    if not text.at(""):
        raise text.damaged(number, "more text follows its end")


class _Text:
    """JSON text of which a piece is held: what is left of it from `position` on."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream = stream
        self._path = path
        # Bytes that are no UTF-8 pass as surrogates, so that the record that has them is quarantined.
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._position = 0
        self._ended = False

    def at(self, sign: str) -> bool:
        """Return whether the next sign, after spaces, is this one; "" is the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1] == sign
            self._read()

    def skip(self, sign: str) -> None:
        if not self.at(sign):
            raise self.damaged(0, f"no {sign!r} where one must stand")
        self._position += 1

    def parse(self, number: int) -> Any:
        """Return the next value. A number that ends with what is held may have more digits."""
        self.at("")  # skips spaces
        while True:
            try:
                value, end = _DECODE(self._text, self._position)
                if end < len(self._text) or self._ended:
                    self._position = end
                    return value
                reason = ""
            except (ValueError, RecursionError) as error:
                reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
            if len(self._text) - self._position > MAX_JSON_BYTES:
                raise self.damaged(number, reason or f"a record of more than {MAX_JSON_BYTES} bytes")
            if self._ended:
                raise self.damaged(number, "it breaks off")
            self._read()

    def _read(self) -> None:
        """Hold twice as much text as is left, so that a long record is parsed only a few times in vain."""
        left = self._text[self._position :]
        data = self._stream.read(max(LIST_READ_BYTES, len(left)))
        self._ended = not data
        self._text, self._position = left + self._decode(data, final=not data), 0

    def damaged(self, number: int, reason: str) -> DataRejected:
        where = f" in record {number}" if number else ""
        return DataRejected(
            f"{self._path} is a damaged JSON list ({reason}{where}); expected [{{...}}, {{...}}]: "
            "write it again, or with one object a line (.jsonl), where damage costs one line"
        )
