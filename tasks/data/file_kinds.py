"""Recognises what a data file is: by the ending of its name, and by its first bytes where they are unmistakable.

Nothing is guessed from words: the bytes that begin a Parquet file, a workbook or a web page begin no table of text.
"""

import codecs
import re
import shlex
import zipfile
from pathlib import Path

from tasks.core.errors import UsageError

FORMATS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "txt",
}
COMPRESSED_INSIDE = ("parquet", "arrow")  # formats that are not compressed as a whole
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
COMPRESSION_STARTS = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"} | {
    b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)
}
HEAD_BYTES = 512  # of a file that are looked at
MAX_CONTROLS = 0.05  # share of control characters in text; random bytes have 11%

_FORMAT_STARTS = {b"PAR1\x15": "parquet", b"ARROW1\0\0": "arrow", b"\xff\xff\xff\xff": "arrow"}
_JSON_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
_JSON_BRACKET = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head)[\s>]", re.IGNORECASE)
_AS_CSV = "save the sheet as CSV (UTF-8)"
_UNPACK = "unpack it and name the file"
_TO_PARQUET = "write its table with pandas: DataFrame.to_parquet"
_FOREIGN_STARTS = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)", _AS_CSV),
    (b"SQLite format 3\0", "an SQLite database", "write the table: sqlite3 -csv -header FILE 'SELECT ...' > data.csv"),
    (b"%PDF-", "a PDF document", "copy its rows to a CSV file"),
    (b"{\\rtf", "a rich-text document", "save it as plain text (UTF-8)"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file it stands for", "git lfs pull"),
    (b"\xfd7zXZ\0", "compressed with xz", "xz -dk FILE"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", "lz4 -d FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"FEA1", "a Feather file of version 1", _TO_PARQUET),
    (b"Obj\x01", "an Avro file", _TO_PARQUET),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TO_PARQUET),
    (b"\x93NUMPY", "a NumPy array", _TO_PARQUET),
    *(
        (b"\x80%c" % protocol, "a Python pickle, which may run code and is not opened", _TO_PARQUET)
        for protocol in (2, 3, 4, 5)
    ),
)
_UTF16_SAMPLE = 32  # first bytes that are looked at


def split_name(name: str) -> tuple[str, str]:
    """Return a file's name without its endings, and its format; "" where the ending is of none.

    web.csv.gz is ("web", "csv"); an ending of no format is taken off too.
    """
    path = Path(name)
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.stem, FORMATS.get(path.suffix.lower(), "")


def detect_format(head: bytes, named: str) -> str:
    """Return the format of a file: what its first bytes say, else `named`."""
    for start, format_name in _FORMAT_STARTS.items():
        if head.startswith(start):
            return format_name
    if named in ("json", "jsonl") and _JSON_LIST.match(head):
        return "json"
    return "jsonl" if named == "json" and not _JSON_BRACKET.match(head) else named


def reject_foreign(head: bytes, path: str, unpack: str = "") -> None:
    """Reject a file whose first bytes are those of something else than a table or sentences.

    Args:
        head: up to HEAD_BYTES first bytes; of a compressed file, of what it holds.
        path: of the file.
        unpack: program that unpacks it; empty for a file that is not compressed.

    Raises:
        UsageError: which names what it is and how to convert it.
    """
    found = _foreign_kind(head, path)
    if found:
        kind, advice = found
        if unpack and "FILE" in advice:
            advice = f"{unpack} -dk {shlex.quote(path)}; {advice}"
        advice = advice.replace("FILE", shlex.quote(_unpacked(path)))
        raise UsageError(f"{path} is {kind}; expected {', '.join(FORMATS)}, plain or as .gz: {advice}")


def reject_binary(head: bytes, path: str) -> None:
    """Reject what is no text in any encoding: it has many control characters, and is no UTF-8.

    Single ones stand in damaged rows, which are quarantined. Arguments as for `reject_foreign`.

    Raises:
        UsageError: which names the formats.
    """
    controls = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    if controls > MAX_CONTROLS * len(head) and not _is_utf8(head):
        raise UsageError(f"{path} is binary data, no text; expected {', '.join(FORMATS)}: name another file")


def _is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8; it may end within a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _foreign_kind(head: bytes, path: str) -> tuple[str, str] | None:
    """Return what a file is and what to do about it, if it is neither table nor text."""
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if _WEB_PAGE.match(head):
        return "a web page (HTML), perhaps of a login that stands before the data", "download the file itself"
    if head.startswith(b"<?xml"):
        return "XML", "write its rows as CSV or JSON lines"
    if any(head.startswith(start) for start in COMPRESSION_STARTS):
        return "compressed twice", _UNPACK
    if encoding := _wide_encoding(head):
        return f"in {encoding}", f"iconv -f {encoding} -t UTF-8 FILE > data{_ending(path)}"
    return next(((kind, advice) for start, kind, advice in _FOREIGN_STARTS if head.startswith(start)), None)


def _wide_encoding(head: bytes) -> str:
    """Return which encoding of two bytes a character a text has; "" where it has none.

    Two bytes at its start tell, and a zero: line ends and digits have one. Without these two bytes, of ASCII text every
    second byte is zero.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head:
        return "UTF-16"
    sample = head[:_UTF16_SAMPLE]
    if len(sample) == _UTF16_SAMPLE:
        for zeros, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
            if not any(sample[zeros::2]) and all(sample[1 - zeros :: 2]):
                return encoding
    return ""


def new_name(path: str) -> str:
    """Return a name for a mended copy of a file, as a command of a message writes it."""
    return shlex.quote(Path(path).with_stem(f"{Path(path).stem}-new").name)


def _unpacked(path: str) -> str:
    """Return a path without the ending of a compressed file."""
    return str(Path(path).with_suffix("")) if Path(path).suffix.lower() in COMPRESSED else path


def _ending(path: str) -> str:
    """Return the ending that a file's text has by another name, .csv if it is of no format."""
    suffix = Path(_unpacked(path)).suffix.lower()
    return suffix if suffix in FORMATS else ".csv"


def _kind_of_zip(path: str) -> tuple[str, str]:
    """Return which of the many kinds of zip a file is."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = set(opened.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # cut, or inside another file
        names = set()
    if "xl/workbook.xml" in names or "xl/workbook.bin" in names:
        return "an Excel workbook (.xlsx)", _AS_CSV
    if "content.xml" in names:
        return "an OpenDocument file", _AS_CSV
    if "word/document.xml" in names:
        return "a Word document", "save it as plain text (UTF-8)"
    return "a zip", _UNPACK
