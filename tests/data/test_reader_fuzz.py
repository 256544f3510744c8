"""However a file is damaged, the reader accounts for every row of it or refuses it in one line."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from fuzzing import CLEAN, MUTATIONS, SENTENCES, Mutation, check_file, mutated_files

from tasks.data import record_readers
from tasks.data.cola_format import Block
from tasks.data.snapshots import write_snapshot

FILES = 60  # make bench BENCH=ingestion ARGS=--fuzz reads thousands


def test_every_row_of_a_damaged_file_is_kept_or_quarantined_or_the_file_is_refused(tmp_path: Path) -> None:
    ends = Counter(
        (path.suffix, check_file(path, tmp_path / "snapshots")) for path in mutated_files(FILES, 0, tmp_path / "files")
    )
    assert ends.total() == FILES
    # The mutations are mild enough to reach what lies behind the first check, and strong enough to matter.
    by_answer = {answer: sum(n for (_, end), n in ends.items() if end == answer) for answer in ("kept", "partly")}
    assert by_answer["kept"] >= FILES // 20
    assert by_answer["partly"] >= FILES // 4
    assert all(ends[suffix, "partly"] for suffix in (".csv", ".jsonl", ".tsv")), ends


@pytest.mark.parametrize("suffix", sorted(CLEAN))
def test_the_files_that_are_damaged_were_clean(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clean{suffix}"
    path.write_bytes(CLEAN[suffix]())
    assert check_file(path, tmp_path / "s") == "kept"
    assert write_snapshot([str(path)], str(tmp_path / "s"))["kept"] == len(SENTENCES)


def test_the_same_seed_damages_the_same_way_whatever_the_count(tmp_path: Path) -> None:
    def contents(count: int, seed: int, name: str) -> list[tuple[str, bytes]]:
        return [(path.name, path.read_bytes()) for path in mutated_files(count, seed, tmp_path / name)]

    first = contents(24, 5, "a")
    assert contents(12, 5, "b") == first[:12]
    assert contents(24, 6, "c") != first
    assert len(set(first)) > 20
    assert {name[-4:] for name, _ in first} == {".csv", "sonl", "quet", ".tsv"}


@pytest.mark.parametrize("mutation", dict.fromkeys(MUTATIONS), ids=lambda mutation: mutation.__name__)
def test_every_mutation_takes_any_bytes(mutation: Mutation) -> None:
    for seed in range(10):
        for data in (b"", b"\n", b"\xff", CLEAN[".tsv"](), CLEAN[".parquet"]()):
            once, again = (mutation(random.Random(seed), data) for _ in range(2))
            assert isinstance(once, bytes)
            assert once == again


def test_a_reader_that_loses_a_row_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clean.csv"
    path.write_bytes(CLEAN[".csv"]() + b"bad\n")
    (tmp_path / "clean.jsonl").write_bytes(CLEAN[".jsonl"]() + b"bad\n")
    to_blocks = record_readers.to_blocks
    monkeypatch.setattr(record_readers, "to_blocks", lambda rows: to_blocks(list(rows)[:-1]))
    with pytest.raises(AssertionError):
        check_file(tmp_path / "clean.jsonl", tmp_path / "s")

    def double(rows: Iterator[record_readers.ParsedRow]) -> Iterator[Block]:
        return to_blocks(chain.from_iterable((row, row) for row in rows))

    monkeypatch.setattr(record_readers, "to_blocks", double)
    with pytest.raises(AssertionError):
        check_file(path, tmp_path / "s")
