"""The gate as a whole, on real snapshots: it passes good data, refuses unfit data and says what to do."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy import WORDS, write_tokenizer

from tasks.core.errors import DataRejected
from tasks.core.files import write_json
from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.settings import DataSettings, GateSettings, Settings
from tasks.core.settings_loader import valid_keys
from tasks.data import encoder_view
from tasks.data.drift import DataProfile
from tasks.data.gate import GateReport, describe_result, raise_if_failed, validate_data
from tasks.data.ingestion import Dataset, ingest
from tasks.data.sources import Sources
from tasks.data.table_format import TableFormat

LIMITS = GateSettings(min_rows=20, min_holdout_rows=10)
Lines = list[str]


def lines(name: str, count: int, first: int = 0) -> Lines:
    """Return rows of both labels, each with a sentence of its own."""
    return [f"s\t{i % 2}\t\t{name} {WORDS[i % 10]} sentence {i}.\n" for i in range(first, first + count)]


def snap(folder: Path, train: Lines, holdout: Lines) -> Dataset:
    for name, content in (("train.tsv", train), ("holdout.tsv", holdout)):
        (folder / name).write_text("".join(content), encoding="utf-8")
    files = Sources(train=[f"{folder}/train.tsv"], holdout=[f"{folder}/holdout.tsv"], secondary=[])
    return ingest(files, str(folder / "snapshots"), TableFormat(), 0.2)


def run_gate(
    folder: Path,
    train: Lines | None = None,
    holdout: Lines | None = None,
    encoder: str | None = None,
    reference: DataProfile | None = None,
    **limits: Any,
) -> GateReport:
    data = snap(folder, train or lines("Training", 40), holdout or lines("Judging", 20))
    return validate_data(data, str(folder), chosen(**limits), encoder, reference)


def chosen(*, max_length: int = 128, share: float = 0.2, **limits: Any) -> Settings:
    return Settings(
        data=DataSettings(validation_share=share),
        gate=LIMITS.model_copy(update=limits),
        finetune=FinetuneSettings(max_length=max_length),
    )


def failed(gate: GateReport) -> list[tuple[str, str]]:
    return [(result["table"], result["description"]) for result in gate["results"] if not result["passed"]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    return run_gate(tmp_path_factory.mktemp("good"))


def test_good_data_passes_every_expectation_of_every_table(good: GateReport) -> None:
    assert good["passed"]
    counted = pd.Series([result["table"] for result in good["results"]]).value_counts().to_dict()
    assert counted == {
        "whole data": 5,
        "training rows, schema": 3,
        "training rows": 10,
        "holdout rows, schema": 3,
        "holdout rows": 10,
    }
    raise_if_failed(good)


def test_the_json_report_equals_the_returned_one(good: GateReport) -> None:
    assert json.loads(Path(good["report"]).read_text(encoding="utf-8")) == good
    assert (good["rows_in"], good["kept"], good["quarantined"], good["reasons"]) == (60, 60, 0, {})
    assert not Path(good["report"]).with_name("quarantine.parquet").exists()
    assert good["profile"]["rows"] == 40


def test_too_many_quarantined_rows_are_refused_with_the_first_one(tmp_path: Path) -> None:
    gate = run_gate(tmp_path, train=["broken\n", "s\tyes\t\tA sentence.\n", *lines("Training", 40)])
    assert failed(gate) == [("whole data", "share of quarantined training rows")]
    with pytest.raises(DataRejected) as caught:
        raise_if_failed(gate)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "data refused: whole data: share of quarantined training rows: 0.04762, allowed at most 0.01 "
        "(data.max_quarantined); "
        f"train.tsv line 1: 1 field instead of 4\n"
        f"see {tmp_path}/gate.html; correct the data, or change the limit: --set data.max_quarantined=VALUE"
    )


def test_quarantined_rows_of_all_files_lie_beside_the_report(tmp_path: Path) -> None:
    gate = run_gate(tmp_path, ["broken\n", *lines("Training", 40)], [*lines("Judging", 20), "s\t1\t\t\n"])
    assert (gate["rows_in"], gate["kept"], gate["quarantined"]) == (62, 60, 2)
    assert gate["reasons"] == {"field count": 1, "empty sentence": 1}
    assert gate["examples"] == ["train.tsv line 1: 1 field instead of 4", "holdout.tsv line 21: empty sentence"]
    stored = pd.read_parquet(tmp_path / "quarantine.parquet")
    assert stored.astype({"file": str}).to_dict("records") == [
        {"file": "train.tsv", "line": 1, "kind": "field count", "reason": "1 field instead of 4", "raw": b"broken"},
        {"file": "holdout.tsv", "line": 21, "kind": "empty sentence", "reason": "empty sentence", "raw": b"s\t1\t\t"},
    ]


def test_a_later_check_removes_the_quarantine_of_an_earlier_one(tmp_path: Path) -> None:
    run_gate(tmp_path, ["broken\n", *lines("Training", 40)])
    run_gate(tmp_path)
    assert not (tmp_path / "quarantine.parquet").exists()


def test_a_refusal_names_the_row_and_how_many_more_failed(tmp_path: Path) -> None:
    repeated = [*lines("Training", 40), *lines("Training", 4), "s\t1\t\tTRAINING, the sentence 0!\n"]
    gate = run_gate(tmp_path, train=repeated)
    assert [description for _, description in failed(gate)] == [
        "share of rows that repeat an earlier sentence",
        "share of rows whose sentence has both labels",
    ]
    with pytest.raises(
        DataRejected, match=r"repeat an earlier sentence: 0\.1111, .* first in train\.tsv line 41 \(and 1 more\)"
    ):
        raise_if_failed(gate)


def test_training_sentences_in_the_holdout_are_refused_however_they_are_written(tmp_path: Path) -> None:
    leaked = [line.upper().replace(".", " !").replace("S\t", "s\t", 1) for line in lines("Training", 4)]
    gate = run_gate(tmp_path, holdout=[*lines("Judging", 20), *leaked])
    assert failed(gate) == [("holdout rows", "share of rows whose sentence is also in the training data")]


def test_quality_issues_are_counted_and_reject_nothing(tmp_path: Path) -> None:
    train = [*lines("Training", 80), "s\t1\t\tTraining the sentence 0.\n", "s\t1\t\tA \bsentence.\n"]
    gate = run_gate(tmp_path, train=train, max_control=0.05, max_conflicts=0.05)
    assert gate["passed"]
    assert gate["quality_issues"]["training rows"] == [
        {"kind": "control", "exact": 1, "normalised": None, "tokens": None, "read": None},
        {"kind": "duplicate", "exact": 1, "normalised": 1, "tokens": None, "read": None},
        {"kind": "conflict", "exact": 1, "normalised": 1, "tokens": None, "read": None},
    ]


def test_word_pieces_that_the_encoder_does_not_know_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "encoder")
    known = [f"s\t{i % 2}\t\t{WORDS[i % 15]} {WORDS[i // 15]} {WORDS[i % 7]}\n" for i in range(40)]
    gate = run_gate(tmp_path, train=known, encoder=str(tmp_path / "encoder"), max_duplicates=1, max_conflicts=1)
    assert gate["passed"]
    gate = run_gate(tmp_path, encoder=str(tmp_path / "encoder"))
    assert failed(gate) == [("whole data", "share of word pieces that the encoder does not know")]


def long_lines(name: str, count: int, words: int) -> Lines:
    return [f"s\t{i % 2}\t\t{' '.join([name, str(i), *['the'] * (words - 2)])}\n" for i in range(count)]


def test_more_truncated_sentences_than_allowed_are_refused(tmp_path: Path) -> None:
    """Nine words and two special tokens: one more than are read."""
    write_tokenizer(tmp_path / "encoder")
    train = [*long_lines("cat", 38, 8), *long_lines("dog", 2, 9)]
    known: Any = {"train": train, "encoder": str(tmp_path / "encoder"), "max_unknown": 1, "max_length": 10}
    assert run_gate(tmp_path, **known)["passed"]
    gate = run_gate(tmp_path, **known, max_truncated=0.049)
    description = "share of sentences truncated at 10 tokens (finetune.max_length)"
    assert failed(gate) == [("training rows", description)]
    (result,) = [each for each in gate["results"] if not each["passed"]]
    assert (result["observed"], result["setting"]) == (0.05, "gate.max_truncated")
    assert result["lines"] == ["train.tsv line 39", "train.tsv line 40"]
    with pytest.raises(
        DataRejected, match=r"0\.05, allowed at most 0\.049 \(gate\.max_truncated\), first in train\.tsv"
    ):
        raise_if_failed(gate)


def test_an_encoder_of_few_positions_truncates_there(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "encoder")
    write_json(tmp_path / "encoder" / "config.json", {"model_type": "bert", "max_position_embeddings": 64})
    holdout = [*lines("Judging", 19), *long_lines("bird", 1, 63)]
    gate = run_gate(
        tmp_path, None, holdout, str(tmp_path / "encoder"), max_unknown=1, max_truncated=0, max_odd_lengths=1
    )
    assert failed(gate) == [
        ("holdout rows", "share of sentences truncated at 64 tokens (the encoder's positions)"),
    ]
    issues = {issue["kind"]: issue for issue in gate["quality_issues"]["holdout rows"]}
    assert (issues["truncated"]["exact"], issues["truncated"]["read"]) == (1, None)


def test_of_a_large_file_a_sample_is_tokenised_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_view, "TOKENISED_ROWS", 10)
    write_tokenizer(tmp_path / "encoder")
    train = [line for pair in zip(long_lines("cat", 20, 9), lines("Training", 20), strict=True) for line in pair]
    gate = run_gate(tmp_path, train, None, str(tmp_path / "encoder"), max_unknown=1, max_length=10)
    assert failed(gate) == [
        ("training rows", "share of sentences truncated at 10 tokens (finetune.max_length), of every 4th sentence")
    ]
    assert [result["observed"] for result in gate["results"] if not result["passed"]] == [1.0]
    issues = {issue["kind"]: issue for issue in gate["quality_issues"]["training rows"]}
    assert (issues["truncated"]["exact"], issues["truncated"]["read"]) == (10, 10)
    assert issues["duplicate"]["tokens"] is None


def test_sentences_that_the_encoder_cannot_tell_apart_are_counted_between_all_roles(tmp_path: Path) -> None:
    """Behind the limit they differ, or in a word that the vocabulary lacks: other texts, the same tokens."""
    write_tokenizer(tmp_path / "encoder")
    starts = [f"{a} {b} {c}" for a in WORDS[:4] for b in WORDS[4:9] for c in WORDS[9:12]]
    train = [f"s\t{i % 2}\t\t{start} {end}\n" for i, start in enumerate(starts) for end in ("xa", "xb")]
    train += ["s\t0\t\tsmall old here\n", "s\t1\t\tsmall old today\n"]
    holdout = [f"s\t{i % 2}\t\tred {word} today here\n" for i, word in enumerate(WORDS)]
    holdout += ["s\t1\t\tsmall old here.\n", "s\t0\t\tsmall old today\n", f"s\t0\t\t{starts[0]} xc\n"]
    gate = run_gate(tmp_path, train, holdout, str(tmp_path / "encoder"), max_unknown=1, max_leak=1, max_conflicts=1)
    issues = {role: {issue["kind"]: issue for issue in found} for role, found in gate["quality_issues"].items()}

    def counted(role: str, kind: str) -> tuple[int, int | None, int | None]:
        found = issues[role][kind]
        return found["exact"], found["normalised"], found["tokens"]

    assert counted("training rows", "duplicate") == (0, 0, 60)
    assert counted("training rows", "conflict") == (0, 0, 0)
    assert counted("holdout rows", "leak") == (1, 2, 2)
    exact, normalised, tokens = counted("validation rows", "leak")
    assert (exact, normalised) == (0, 0)
    assert tokens is not None
    assert 0 < tokens < 60


@pytest.mark.parametrize(("share", "side"), [(0.001, "validation"), (0.999, "training")])
def test_a_side_of_the_split_without_both_labels_is_refused_before_training(
    tmp_path: Path, share: float, side: str
) -> None:
    settings = chosen()
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"validation_share": share})})
    gate = validate_data(snap(tmp_path, lines("Training", 40), lines("Judging", 20)), str(tmp_path), settings)
    assert failed(gate) == [("whole data", f"labels that occur in the {side} rows after the split")]
    with pytest.raises(
        DataRejected, match=r"allowed at least 2 \(data\.validation_share\)\n.*--set data\.validation_share="
    ):
        raise_if_failed(gate)


# What of a small or odd file is refused, in one line that names the cause; limits of its size are off.
ODD_FILES: dict[str, tuple[Lines, str]] = {
    "one row of each label": (lines("Training", 2), "labels that occur in the validation rows after the split"),
    "ten rows, one of a label": (
        [line.replace("\t0\t", "\t1\t") for line in lines("Training", 9)] + lines("Other", 1),
        "labels that occur in the validation rows after the split",
    ),
    "all rows equal": (lines("Training", 1) * 40, "labels that occur"),
    "all rows equal but their labels": (
        [*lines("Training", 1), lines("Training", 1)[0].replace("\t0\t", "\t1\t")] * 20,
        "labels that occur in the training rows after the split",
    ),
    "one label": ([line.replace("\t0\t", "\t1\t") for line in lines("Training", 40)], "labels that occur"),
    "all of it in the holdout": (lines("Judging", 20), "labels that occur in the training rows after the split"),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_file_that_cannot_be_trained_on_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    train, description = ODD_FILES[name]
    off = {
        "min_rows": 1,
        "min_acceptable": 0,
        "max_acceptable": 1,
        "max_duplicates": 1,
        "max_conflicts": 1,
        "max_leak": 1,
    }
    gate = run_gate(tmp_path, train, **off)
    assert description in [text for _, text in failed(gate)]
    with pytest.raises(
        DataRejected, match=r"^data refused: [^\n]*: labels that occur[^\n]*, allowed [^\n]*\nsee [^\n]*$"
    ):
        raise_if_failed(gate)


def test_ten_rows_are_refused_for_their_number(tmp_path: Path) -> None:
    gate = run_gate(tmp_path, lines("Training", 10))
    assert failed(gate) == [("training rows", "number of rows")]


def test_drift_from_the_champions_data_warns_and_is_refused_where_that_is_set(tmp_path: Path, good: GateReport) -> None:
    longer = [line.replace(".", " and so on and on, for ever and ever.") for line in lines("Training", 40)]
    gate = run_gate(tmp_path, train=longer, reference=good["profile"])
    assert gate["passed"]
    assert gate["reference"] == good["profile"]["dataset"]
    assert {shift["name"] for shift in gate["drift"] if shift["drifted"]} == {"length", "vocabulary"}
    assert len(failed(gate)) == 2
    raise_if_failed(gate)
    strict = run_gate(tmp_path, train=longer, reference=good["profile"], drift="refuse")
    assert not strict["passed"]
    with pytest.raises(DataRejected, match="drift from the champion's data, Kolmogorov-Smirnov distance of characters"):
        raise_if_failed(strict)


def test_the_same_data_does_not_drift_from_itself(tmp_path: Path, good: GateReport) -> None:
    gate = run_gate(tmp_path, reference=good["profile"], drift="refuse")
    assert gate["passed"]
    assert [shift["distance"] for shift in gate["drift"]] == [0.0] * 4


def test_every_setting_that_a_result_names_exists(good: GateReport) -> None:
    named = {result["setting"] for result in good["results"]} - {None}
    assert named <= set(valid_keys())
    assert len(named) == 11


def test_a_result_is_one_line(good: GateReport) -> None:
    lines = [describe_result(result) for result in good["results"]]
    assert lines[0] == "whole data: share of quarantined training rows: 0, allowed at most 0.01"
    assert not any("\n" in line for line in lines)


def test_a_file_without_a_good_row_is_refused_and_not_a_fault(tmp_path: Path) -> None:
    gate = run_gate(tmp_path, train=["broken\n"] * 5)
    assert ("training rows", "number of rows") in failed(gate)
    with pytest.raises(DataRejected, match="share of quarantined training rows"):
        raise_if_failed(gate)


def test_each_role_has_its_own_share_of_quarantined_rows(tmp_path: Path) -> None:
    """A few lost rows of the holdout are many of it, however many training rows there are."""
    gate = run_gate(tmp_path, lines("Training", 600), [*lines("Judging", 57), "broken\n", "broken\n", "broken\n"])
    assert failed(gate) == [("whole data", "share of quarantined holdout rows")]


def test_a_file_of_which_nothing_can_be_read_is_refused_beside_a_large_good_one(tmp_path: Path) -> None:
    (tmp_path / "feedback.tsv").write_text("no row of the format\n" * 3)
    (tmp_path / "train.tsv").write_text("".join(lines("Training", 400)))
    (tmp_path / "holdout.tsv").write_text("".join(lines("Judging", 20)))
    files = Sources(
        train=[f"{tmp_path}/train.tsv", f"{tmp_path}/feedback.tsv"], holdout=[f"{tmp_path}/holdout.tsv"], secondary=[]
    )
    data = ingest(files, str(tmp_path / "snapshots"), TableFormat(), 0.2)
    gate = validate_data(data, str(tmp_path), chosen())
    assert failed(gate) == [("whole data", "files without a readable row")]
    with pytest.raises(DataRejected, match=r"files without a readable row: 1, allowed at most 0; feedback\.tsv line 1"):
        raise_if_failed(gate)
