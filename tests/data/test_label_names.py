"""Labels by other names: the same in every format, and refused with the option that takes them."""

import gzip
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from tasks.core.column_options import parse_labels
from tasks.core.errors import UsageError
from tasks.data.cola_format import DEFAULT_LABELS, RowRules
from tasks.data.label_names import find_label
from tasks.data.snapshots import Snapshot, write_snapshot
from tasks.data.table_format import TableFormat

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "arrow", "csv.gz")


def write(folder: Path, suffix: str, labels: Sequence[Any]) -> str:
    """Write sentences with these labels."""
    path = folder / f"web.{suffix}"
    frame = pd.DataFrame({"sentence": [f"Number {i}." for i in range(len(labels))], "label": list(labels)})
    rows = frame.to_dict("records")
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "arrow":
        pyarrow.feather.write_feather(pa.Table.from_pandas(frame), path)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        text = frame.to_csv(index=False, sep="\t" if suffix == "tsv" else ",").encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    return str(path)


def snap(path: str, labels: str = "") -> Snapshot:
    rules = RowRules(labels=DEFAULT_LABELS | parse_labels(labels))
    return write_snapshot([path], str(Path(path).parent / "snapshots"), TableFormat(rules=rules))


@pytest.mark.parametrize(
    ("labels", "option"),
    [
        ([1, 0, 1], ""),
        ([1.0, 0.0, 1.0], ""),
        (["1.0", "0.0", "1."], ""),
        ([" 1", "0 ", "1"], ""),
        ([True, False, True], "true=1,false=0"),
        (["True", "false", "TRUE"], "true=1,false=0"),
        (["ACCEPTABLE", "Unacceptable", "acceptable"], "acceptable=1,unacceptable=0"),
        ([1, -1, 1], "1=1,-1=0"),
        ([2.0, 1.0, 2.0], "2=1,1=0"),
    ],
)
def test_the_same_labels_give_the_same_rows_in_every_format(tmp_path: Path, labels: list[Any], option: str) -> None:
    expected = write_snapshot([write(tmp_path, "csv", [1, 0, 1])], str(tmp_path / "s"))["digest"]
    for suffix in FORMATS:
        path = write(tmp_path, suffix, labels)
        assert snap(path, option)["digest"] == expected, suffix
        if option:
            with pytest.raises(UsageError, match=r"has the labels .*; expected 0 and 1: --labels ") as caught:
                snap(path)
            assert parse_labels(shlex.split(str(caught.value))[-1].lower()) == parse_labels(option), suffix


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["good"] * 3 + ["bad"], "'bad' (1 row) and 'good' (3 rows); expected 0 and 1: --labels good=1,bad=0"),
        (["No"] * 3 + ["YES"], "'No' (3 rows) and 'YES' (1 row); expected 0 and 1: --labels YES=1,No=0"),
        ([1] * 2 + [2] * 3, "'1' (2 rows) and '2' (3 rows); expected 0 and 1: --labels 2=1,1=0"),
        ([0] * 2 + [2], "'0' (2 rows) and '2' (1 row); expected 0 and 1: --labels 2=1,0=0"),
        (["not ok", "ok"], "'not ok' (1 row) and 'ok' (1 row); expected 0 and 1: --labels 'ok=1,not ok=0'"),
        (["ill-formed", "formed"], "expected 0 and 1: --labels ill-formed=1,formed=0 (or ill-formed=0,formed=1: which"),
        (["a,b", "c"], "expected 0 and 1, or names that --labels NAME=1,NAME=0 can say"),
        (["cat\x1b", "dog"], r"'cat\x1b' (1 row) and 'dog' (1 row); expected 0 and 1"),
    ],
)
def test_two_other_labels_are_refused_with_their_counts_and_the_option(
    tmp_path: Path, labels: list[Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        snap(write(tmp_path, "csv", labels))
    assert str(caught.value).startswith(f"{tmp_path / 'web.csv'} has the labels ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "labels",
    [["1"] * 50 + ["l"], ["1", "bad"], ["1", "0", "yes"], ["good", "bad", "odd"], ["yes"], ["1", "1"], ["1", "0", ""]],
)
def test_a_few_odd_labels_or_more_than_two_are_faults_of_their_rows(tmp_path: Path, labels: list[str]) -> None:
    snapshot = snap(write(tmp_path, "jsonl", labels))
    assert snapshot["quarantined"] == sum(label not in ("0", "1") for label in labels)


def test_a_mistyped_name_of_a_label_shows_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels 'bad' \(1 row\) and 'good' \(2 rows\); .*: --labels good=1,bad=0"):
        snap(write(tmp_path, "csv", ["good", "good", "bad"]), "good=1,baad=0")


def test_labels_are_read_as_they_are_written_before_they_are_compared() -> None:
    assert find_label("A", {"A": 1, "a": 0}) == 1
    assert find_label("a", {"A": 1, "a": 0}) == 0
    assert [find_label(label, DEFAULT_LABELS) for label in ("-0.0", "1.", "01", "+1", "1e0", "\uff11", "")] == [
        *(0, 1),
        *[None] * 5,
    ]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_that_names_its_labels_the_other_way_round_is_refused_with_the_option(
    tmp_path: Path, suffix: str
) -> None:
    def save(*names: str) -> str:
        table = pa.table({"sentence": ["One.", "Two.", "Three."], "label": [0, 1, 0]})
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = tmp_path / f"{names[0]}.{suffix}"
        if suffix == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            pyarrow.feather.write_feather(table, path)
        return str(path)

    reversed_names = save("acceptable", "unacceptable")
    with pytest.raises(UsageError, match=r"names its label 0 'acceptable' and 1 'unacceptable'; .* --labels 0=1,1=0$"):
        snap(reversed_names)
    assert snap(reversed_names, "0=1,1=0")["kept"] == 3
    assert snap(save("unacceptable", "acceptable"))["kept"] == 3
    assert snap(save("x", "y"))["kept"] == 3
