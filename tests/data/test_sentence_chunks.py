"""Chunks have the records that reading the whole input has, each once, in order, with the same lines."""

import csv
import gzip
import io
import itertools
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import VerdictError
from tasks.data import sentence_chunks
from tasks.data.cola_format import BYTE_ORDER_MARK
from tasks.data.sentence_chunks import plan_chunks, read_chunk
from tasks.data.sentences import SentenceSource, open_source, read_sentences

SENTENCES = [f"the cat sees {number}" for number in range(23)]
pieces = st.sampled_from(
    [b"\t", b"\n", b"\r\n", b"\r", b'"', b" ", b'{"text": "a"}\n', b"[]\n", b"\0", b"\xff", BYTE_ORDER_MARK, b"text\n"]
)
files = st.lists(st.one_of(pieces, st.just(b"s\t1\t\tthe cat\n"), st.binary(max_size=4)), max_size=30).map(b"".join)


def read_all(source: SentenceSource, size: int) -> list[object]:
    return [row for chunk in plan_chunks(source, size) for row in read_chunk(source, chunk)]


@pytest.mark.parametrize("ending", ["txt", "tsv", "csv", "jsonl"])
@given(data=files)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_give_the_same_records_in_chunks(ending: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"in.{ending}"
        path.write_bytes(b"text\n" + data if ending == "csv" else data)
        try:
            source = open_source(str(path))
            expected = list(read_sentences(source))
        except VerdictError:
            return
        for size, scanned in itertools.product((1, 2, 7), (1, 5, 1 << 20)):
            with patch.object(sentence_chunks, "SCAN_BYTES", scanned):
                assert read_all(source, size) == expected


def write_files(folder: Path) -> dict[str, int]:
    """Write the sentences in each format; return how many chunks of 5 records each has."""
    table = pa.table({"text": SENTENCES})
    pq.write_table(table, folder / "small.parquet", row_group_size=3)
    pq.write_table(table, folder / "large.parquet", row_group_size=20)
    lines = "".join(f"{sentence}\n" for sentence in SENTENCES)
    (folder / "in.txt").write_text(lines)
    (folder / "in.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "in.tsv").write_text("id\ttext\n" + "".join(f"1\t{sentence}\n" for sentence in SENTENCES))
    (folder / "in.jsonl").write_text('{"other": 1}\n' + "".join(f'{{"text": "{each}"}}\n' for each in SENTENCES))
    text = io.StringIO()
    csv.writer(text).writerows([["text"], *([f"{sentence},\nhere"] for sentence in SENTENCES)])
    (folder / "in.csv").write_text(text.getvalue())
    (folder / "in.json").write_text(json.dumps([{"text": sentence} for sentence in SENTENCES]))
    lines_in = {"in.txt": 5, "in.tsv": 5, "in.jsonl": 5, "in.txt.gz": 1, "in.csv": 1, "in.json": 1}
    return {"small.parquet": 4, "large.parquet": 2, **lines_in}


def test_each_format_is_divided_as_far_as_it_allows(tmp_path: Path) -> None:
    for name, chunks in write_files(tmp_path).items():
        source = open_source(str(tmp_path / name))
        assert len(list(plan_chunks(source, 5))) == chunks, name
        assert read_all(source, 5) == list(read_sentences(source)), name


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet", "csv", "tsv.gz"])
def test_lines_are_counted_on_from_file_to_file(tmp_path: Path, ending: str) -> None:
    record = '{{"text": "{}"}}\n' if ending == "jsonl" else "1\t{}\n" if "tsv" in ending else "{}\n"
    for number in range(3):
        path = tmp_path / f"part-{number:05}-of-00003.{ending}"
        if ending == "parquet":
            pq.write_table(pa.table({"text": SENTENCES}), path, row_group_size=4)
            continue
        header = "" if ending == "jsonl" else "id\ttext\n" if "tsv" in ending else "text\n"
        content = (header + "".join(record.format(sentence) for sentence in SENTENCES) + "\n\n").encode()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    source = open_source(str(tmp_path))
    assert read_all(source, 5) == list(read_sentences(source))
    assert len(read_all(source, 5)) == 3 * len(SENTENCES)
