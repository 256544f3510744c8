"""Tables in several files: parts, partitions, and what Hugging Face's `save_to_disk` writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import UsageError
from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.sources import Sources, locate_sources
from tasks.data.table_folders import table_name, table_parts

TABLE = pa.table(
    {
        "sentence": [f"Number {number}." for number in range(10)],
        "label": [0] * 4 + [1] * 6,
        "source": ["x"] * 10,
        "mark": ["*"] * 10,
    }
)
LINES = "".join(f"x\t{row['label']}\t*\t{row['sentence']}\n" for row in TABLE.to_pylist())
DIGEST = hashlib.sha256(LINES.encode()).hexdigest()


def save(folder: Path, table: pa.Table = TABLE, shards: int = 2) -> Path:
    """Write a table as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{shards:05}.arrow" for number in range(shards)]
    for number, name in enumerate(names):
        size = -(-len(table) // shards)
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(number * size, size))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-1f2e3d.arrow").write_bytes(b"")
    return folder


def partitioned(folder: Path, *columns: str) -> Path:
    """Write a table as pandas and Spark do, its columns in the names of folders."""
    pq.write_to_dataset(TABLE, folder, partition_cols=list(columns))
    return folder


def parts(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    size = -(-len(TABLE) // len(names))
    for number, name in enumerate(names):
        pq.write_table(TABLE.slice(number * size, size), folder / name)
    (folder / "_SUCCESS").touch()
    return folder


def locate(path: Path, train: str = "", holdout: str = "") -> Sources:
    return locate_sources([str(path)], train, holdout, "stores", offline=True)


def read(files: list[str], folder: Path) -> tuple[str, int]:
    snapshot = write_snapshot(files, str(folder / "snapshots"))
    return snapshot["digest"], snapshot["quarantined"]


KINDS: dict[str, Any] = {
    "save_to_disk": save,
    "save_to_disk, one file": lambda folder: save(folder, shards=1),
    "Hive, label": lambda folder: partitioned(folder, "label"),
    "Hive, source and label": lambda folder: partitioned(folder, "source", "label"),
    "Spark": lambda folder: parts(folder, "part-00000-8f3a.snappy.parquet", "part-00001-8f3a.snappy.parquet"),
    "numbers": lambda folder: parts(folder, "0000.parquet", "0001.parquet"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_one_table_has_the_rows_of_one_file(tmp_path: Path, kind: str) -> None:
    folder = KINDS[kind](tmp_path / "web.parquet")
    found = locate(folder)
    assert (found["holdout"], found["secondary"]) == ([], [])
    assert read(found["train"], tmp_path) == (DIGEST, 0)
    assert {table_name(file) for file in found["train"]} == {"web"}


def test_splits_that_are_folders_have_the_roles_of_their_names(tmp_path: Path) -> None:
    folder = save(tmp_path / "cola" / "train").parent
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    save(folder / "validation", TABLE.slice(2), shards=1)
    partitioned(folder / "extra", "label")
    found = locate(folder)
    assert [Path(file).parent.name for file in found["train"]] == ["train"] * 2
    assert found["holdout"] == [str(folder / "validation" / "data-00000-of-00001.arrow")]
    assert read(found["train"], tmp_path) == (DIGEST, 0)
    assert len(locate(folder, holdout="extra")["holdout"]) == 2
    assert len(locate(folder, holdout=str(folder / "extra"))["holdout"]) == 2


def test_parts_beside_each_other_are_joined_by_their_names(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    pq.write_table(TABLE, folder / "validation-00000-of-00001-0a1b2c3d4e5f.parquet")
    found = locate(folder)
    assert read(found["train"], tmp_path) == (DIGEST, 0)
    assert read(found["holdout"], tmp_path) == (DIGEST, 0)
    assert [table_name(file) for file in found["train"] + found["holdout"]] == ["train", "train", "validation"]


def test_files_of_other_names_make_no_table_of_a_folder(tmp_path: Path) -> None:
    folder = parts(tmp_path / "data", "0000.parquet", "in_domain_train.parquet", "out_of_domain_dev.parquet")
    assert table_parts(folder) == []
    assert locate(folder)["train"] == [str(folder / "in_domain_train.parquet")]
    assert table_parts(parts(tmp_path / "years", "2023.parquet", "2024.parquet")) == []


def test_a_partition_may_be_called_as_people_call_labels(tmp_path: Path) -> None:
    table = TABLE.set_column(1, "label", pa.array(["good/bad"] * 4 + ["fine"] * 6))
    pq.write_to_dataset(table, tmp_path / "web", partition_cols=["label"])
    expected = rf"{tmp_path / 'web'} has the labels 'fine' \(6 rows\) and 'good/bad' \(4 rows\); .*: --labels "
    with pytest.raises(UsageError, match=expected):
        write_snapshot(locate(tmp_path / "web")["train"], str(tmp_path / "s"))


def test_a_part_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = parts(tmp_path / "web", "0000.parquet")
    pq.write_table(TABLE, tmp_path / "other.parquet")
    (folder / "0001.parquet").symlink_to(tmp_path / "other.parquet")
    with pytest.raises(UsageError, match=r"0001.parquet is a link that leads out of the folder; expected a file in it"):
        locate(folder)


def test_equals_signs_in_other_folders_name_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "label=1"
    folder.mkdir()
    (folder / "web.tsv").write_text("text\tlabel\nA.\t0\n")
    frame = read_snapshot(write_snapshot([str(folder / "web.tsv")], str(tmp_path / "s"))["path"])
    assert (frame["label"].tolist(), frame["source"].tolist()) == ([0], ["web"])


@pytest.mark.parametrize("column", ["split", "Split"])
def test_partitions_called_split_have_the_roles_of_files_of_these_names(tmp_path: Path, column: str) -> None:
    for name, table in (("train", TABLE), ("validation", TABLE.slice(2)), ("Test", TABLE.slice(4))):
        pq.write_to_dataset(table, tmp_path / "web" / f"{column}={name}", partition_cols=["label"])
    found = locate(tmp_path / "web")
    assert read(found["train"], tmp_path) == (DIGEST, 0)
    assert all("split=validation" in file.lower() for file in found["holdout"])
    assert {table_name(file) for file in found["train"]} == {"web"}
    assert locate(tmp_path / "web", holdout="test")["holdout"] == table_parts(tmp_path / "web" / f"{column}=Test")
    assert table_parts(tmp_path / "web") == []


def test_a_partition_called_split_may_be_below_others_and_must_have_a_role(tmp_path: Path) -> None:
    for label in (0, 1):
        parts(tmp_path / "web" / f"label={label}" / "split=dev", "a.parquet")
    with pytest.raises(UsageError, match=r"web holds no file 'in_domain_train.tsv' \(it holds dev\); name it: --train"):
        locate(tmp_path / "web")
    parts(tmp_path / "web" / "label=1" / "split=train", "a.parquet")
    (tmp_path / "csv" / "split=train").mkdir(parents=True)
    (tmp_path / "csv" / "split=train" / "part-0.csv").write_text("sentence,label\nA.,1\n")
    (tmp_path / "csv" / "split=test").mkdir()
    (tmp_path / "csv" / "split=test" / "part-0.csv").write_text("sentence,label\nB.,1\n")
    assert [Path(file).parent.name for role in ("train", "holdout") for file in locate(tmp_path / "csv")[role]] == [
        *["split=train", "split=test"]
    ]
    found = locate(tmp_path / "web")
    assert (len(found["train"]), len(found["holdout"])) == (1, 2)
