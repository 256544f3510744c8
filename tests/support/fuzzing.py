"""Makes damaged data files of every format, the same ones for the same seed, and checks the snapshot of each.

Used by a test with dozens of files, and with thousands by tests/benchmarks/bench_ingestion.py --fuzz.
"""

import csv
import hashlib
import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import VerdictError
from tasks.data.cola_format import BYTE_ORDER_MARK
from tasks.data.snapshots import Snapshot, count_rows, iter_snapshot, write_snapshot

# Fields that CSV must quote and JSON must escape are among them; nothing is at fault.
SENTENCES = [
    "The sailors rode the breeze clear of the rocks.",
    'He said "go", and they went.',
    "NA",
    "Zoë ate 寿司 in São Paulo 🙂.",
    "It's a, b; c.",
    "back\\slash",
    '"',
    "null",
]
HUGE = 150_000  # bytes of a huge line: more than the csv module takes for one field
MOST_MUTATIONS = 6
LONGEST_MESSAGE = 2_000  # characters; column names that are shown are cut

Mutation = Callable[[random.Random, bytes], bytes]


def mutated_files(count: int, seed: int, folder: Path) -> Iterator[Path]:
    """Yield the paths of damaged files, made one at a time; file number i is the same whatever `count` is.

    Args:
        count: number of files.
        seed: chooses the mutations.
        folder: receives the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers = sorted(CLEAN)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        suffix = makers[number % len(makers)]
        data = CLEAN[suffix]()
        for mutation in rng.choices(MUTATIONS, k=rng.randint(1, MOST_MUTATIONS)):
            data = mutation(rng, data)
        path = folder / f"{number:05}{suffix}"
        path.write_bytes(data)
        yield path


def check_file(path: Path, folder: Path) -> str:
    """Take a snapshot of a file and check that every record is accounted for.

    Args:
        path: any file.
        folder: receives the snapshot.

    Returns:
        "kept": no row was quarantined; "partly": some or all were; "refused": with a message of one line.

    Raises:
        AssertionError: if a law is broken; any other exception but VerdictError passes through.
    """
    try:
        snapshot = write_snapshot([str(path)], str(folder))
    except VerdictError as error:
        message = str(error)
        assert message.isprintable(), f"{path}: a message of several lines: {message!r}"
        assert len(message) <= LONGEST_MESSAGE + len(str(path)), f"{path}: a message of {len(message)} characters"
        return "refused"
    _check_counts(path, snapshot)
    with tempfile.TemporaryDirectory() as scratch:
        _check_digest(snapshot, Path(scratch))
    return "partly" if snapshot["quarantined"] else "kept"


def _check_counts(path: Path, snapshot: Snapshot) -> None:
    """Rows in = kept + quarantined = stored; each record has its own number."""
    kept = [line for batch in iter_snapshot(snapshot["path"], ["line"]) for line in batch["line"].to_pylist()]
    bad = pq.read_table(snapshot["quarantine"]).to_pylist() if snapshot["quarantine"] else []
    stored = count_rows(snapshot["path"])
    assert snapshot["rows_in"] == snapshot["kept"] + snapshot["quarantined"] == stored + len(bad), path
    assert (snapshot["kept"], snapshot["quarantined"]) == (len(kept), len(bad)), path
    assert snapshot["reasons"] == Counter(row["kind"] for row in bad), path
    assert all(row["reason"] and row["raw"] is not None for row in bad), path
    lines = sorted(kept + [row["line"] for row in bad])
    if path.suffix == ".csv":  # a record may have several lines, the header is the first
        assert len(set(lines)) == len(lines), path
    else:
        data = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        expected = list(range(1, snapshot["rows_in"] + 1))
        if path.suffix == ".tsv":
            expected = list(range(1, len(list(io.BytesIO(data))) + 1))
        if path.suffix == ".jsonl":  # blank lines are no records
            expected = [number for number, line in enumerate(io.BytesIO(data), start=1) if line.strip()]
        assert lines == expected, path


def _check_digest(snapshot: Snapshot, scratch: Path) -> None:
    """The kept rows, written as a file of CoLA's format by hand, have the snapshot's digest and are all kept again."""
    rows = [row for batch in iter_snapshot(snapshot["path"]) for row in batch.to_pylist()]
    data = "".join(f"{row['source']}\t{row['label']}\t{row['mark']}\t{row['sentence']}\n" for row in rows).encode()
    assert snapshot["digest"] == hashlib.sha256(data).hexdigest()
    if rows:
        (scratch / "again.tsv").write_bytes(data)
        again = write_snapshot([str(scratch / "again.tsv")], str(scratch))
        assert (again["digest"], again["kept"], again["quarantined"]) == (snapshot["digest"], len(rows), 0)


def _tsv() -> bytes:
    return "".join(f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\t{text}\n" for i, text in enumerate(SENTENCES)).encode()


def _csv() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "sentence", "source"])
    writer.writerows([i % 2, sentence, "bc01"] for i, sentence in enumerate(SENTENCES))
    return text.getvalue().encode()


def _jsonl() -> bytes:
    records = [{"sentence": text, "label": i % 2, "mark": "*"} for i, text in enumerate(SENTENCES)]
    return "".join(json.dumps(record, ensure_ascii=i % 3 == 0) + "\n" for i, record in enumerate(records)).encode()


def _parquet() -> bytes:
    """Neither compressed nor encoded, so that a changed byte changes a value."""
    sink = pa.BufferOutputStream()
    labels = [i % 2 for i in range(len(SENTENCES))]
    pq.write_table(pa.table({"text": SENTENCES, "label": labels}), sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


CLEAN: dict[str, Callable[[], bytes]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".tsv": _tsv}


def _flip(rng: random.Random, data: bytes) -> bytes:
    """Change up to four bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4) if data else 0):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    """Take a short piece out."""
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.randint(1, 40) :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


INSERTED = (b'"', b'""', b"\t", b"\0", b"\r", b"\n", b"\r\n", b",", b"{", b"\\", b"\\ud800", b"\xff", b"\xed\xa0\x80")


def _insert(rng: random.Random, data: bytes) -> bytes:
    """Put a piece that some format takes for special anywhere."""
    position = rng.randint(0, len(data))
    return data[:position] + rng.choice((*INSERTED, BYTE_ORDER_MARK)) + data[position:]


def _mark(rng: random.Random, data: bytes) -> bytes:
    """Put a byte order mark at the start."""
    return BYTE_ORDER_MARK + data


def _move_lines(rng: random.Random, data: bytes) -> bytes:
    """Swap, double or drop a line."""
    lines = data.splitlines(keepends=True)
    if lines:
        one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        change = rng.choice(("swap", "double", "drop"))
        if change == "swap":
            lines[one], lines[other] = lines[other], lines[one]
        elif change == "double":
            lines.insert(other, lines[one])
        else:
            del lines[one]
    return b"".join(lines)


def _crlf(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def _utf16(rng: random.Random, data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode("utf-16")


def _huge_line(rng: random.Random, data: bytes) -> bytes:
    """Put a long run of one piece in, within a line or as one of its own."""
    position = rng.choice((rng.randint(0, len(data)), data.find(b"\n") + 1))
    piece = rng.choice((b"A", b"A ", b"\t", b'"', b"[", '"é'.encode()))
    return data[:position] + piece * (HUGE // len(piece)) + rng.choice((b"", b"\n")) + data[position:]


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 200))


def _empty(rng: random.Random, data: bytes) -> bytes:
    """Leave nothing, or next to nothing."""
    return rng.choice((b"", b"\n", b"\0", BYTE_ORDER_MARK))


# Those that leave most of a file whole are drawn more often.
MUTATIONS: list[Mutation] = [
    *[_flip, _cut, _insert, _move_lines] * 6,
    *[_crlf, _mark, _append] * 2,
    *[_truncate, _utf16, _huge_line, _empty],
]
