"""Parts become files in the order of the input, whatever the order in which chunks are finished."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from http_server import wait_until

from tasks.core.errors import VerdictError
from tasks.serving.chunk_scoring import ScoredChunk, part_path
from tasks.serving.part_merge import Output, PartMerger

SCHEMA = pa.schema([("line", pa.int64())])
CHUNKS = {1: [[1, 2], [3]], 2: [], 3: [[4]], 4: [[5, 6]]}  # the lines of each part


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for chunk, of in CHUNKS.items():
        for number, lines in enumerate(of, 1):
            pq.write_table(pa.table({"line": lines}, SCHEMA), part_path(folder, chunk, number))
    return folder


def make_merger(parts: Path, *, limit: int = 9) -> PartMerger:
    """Return a merger into a file of all lines, and one of the lines above a limit."""
    whole = Output(parts.parent / "all.parquet", SCHEMA, lambda part: part)
    large = Output(parts.parent / "large.parquet", SCHEMA, lambda part: part.filter(pc.greater(part["line"], limit)))
    return PartMerger(parts, {"all": whole, "large": large})


def lines_of(path: Path) -> list[int]:
    lines: list[int] = pq.read_table(path)["line"].to_pylist()
    return lines


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (3, 1, 4, 2)])
def test_rows_are_in_the_order_of_the_input(order: Sequence[int], parts: Path) -> None:
    with make_merger(parts, limit=4) as merger:
        for number in order:
            merger.add(ScoredChunk(number, len(CHUNKS[number])))
        merger.publish()
    assert lines_of(parts.parent / "all.parquet") == [1, 2, 3, 4, 5, 6]
    assert lines_of(parts.parent / "large.parquet") == [5, 6]


def test_parts_are_merged_while_others_are_scored(parts: Path) -> None:
    with make_merger(parts) as merger:
        merger.add(ScoredChunk(1, 2))
        wait_until(lambda: not merger._ready and merger._merging and merger._merging.done())
        for part in (1, 2):
            part_path(parts, 1, part).unlink()
        for number in (4, 3, 2):
            merger.add(ScoredChunk(number, len(CHUNKS[number])))
        merger.publish()
    assert lines_of(parts.parent / "all.parquet") == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_merged_ends_the_run_at_the_next_chunk_or_at_its_end(parts: Path) -> None:
    part_path(parts, 1, 1).unlink()
    with make_merger(parts) as merger:
        merger.add(ScoredChunk(1, 2))
        wait_until(lambda: merger._merging and merger._merging.done())
        with pytest.raises(FileNotFoundError):
            merger.add(ScoredChunk(2, 0))
    with make_merger(parts) as merger:
        merger.add(ScoredChunk(1, 2))
        with pytest.raises(FileNotFoundError):
            merger.publish()
    assert not (parts.parent / "all.parquet").exists()


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_part_is_one_line(cut: bool, parts: Path) -> None:
    path = part_path(parts, 3, 1)
    pq.write_table(pa.table({"line": [4]}, SCHEMA), path, write_page_checksum=True)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content[:-4] if cut else content)
    with make_merger(parts) as merger:
        for number in CHUNKS:
            merger.add(ScoredChunk(number, len(CHUNKS[number])))
        with pytest.raises(
            VerdictError, match=r"part-000003-00001\.parquet is damaged \(.*\); run the same command again"
        ):
            merger.publish()
    assert not (parts.parent / "all.parquet").exists()


def test_a_file_without_rows_is_not_written_and_one_of_before_is_left(parts: Path) -> None:
    (parts.parent / "large.parquet").write_text("of before")
    with make_merger(parts) as merger:
        merger.add(ScoredChunk(1, 2))
        merger.publish()
    assert (parts.parent / "large.parquet").read_text() == "of before"


def test_what_is_not_published_leaves_nothing_and_what_a_killed_run_left_is_deleted(parts: Path) -> None:
    before = sorted(parts.iterdir())
    (parts / ".all.killed").write_text("half of the rows")
    with make_merger(parts) as merger:
        assert sorted(parts.iterdir()) == before
        merger.add(ScoredChunk(1, 2))
        wait_until(lambda: len(list(parts.glob(".all.*"))) == 1)
        with pytest.raises(RuntimeError), merger:
            raise RuntimeError("a worker is lost")
    assert sorted(parts.iterdir()) == before
    assert not (parts.parent / "all.parquet").exists()
