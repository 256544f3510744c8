"""Files become one snapshot for each role; without a holdout file a share of the sentences is split off for good."""

import hashlib
import logging
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core.errors import DataRejected, UsageError
from tasks.core.files import json_digest
from tasks.data.cola_format import RowRules
from tasks.data.ingestion import HOLDOUT_HASH_KEY, Dataset, ingest, split_off_holdout
from tasks.data.normalization import normalise
from tasks.data.snapshots import iter_snapshot, read_snapshot, write_snapshot
from tasks.data.sources import Sources
from tasks.data.splitting import hash_fraction, split_rows
from tasks.data.table_format import TableFormat

unhurried = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong

Rows = list[tuple[str, int]]

# Few words with many spellings: repeats are common.
spellings = st.tuples(
    st.integers(0, 40), st.sampled_from(["word {}", "Word {}.", "  WORD   {} ", "«word» {}", "word_{}…", "wörd {}"])
).map(lambda pair: pair[1].format(pair[0]))
tables = st.lists(st.tuples(spellings, st.integers(0, 1)), max_size=40)


def write(folder: Path, rows: Rows, name: str = "mine.tsv", source: str = "s") -> str:
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{source}\t{label}\t\t{sentence}\n" for sentence, label in rows), encoding="utf-8")
    return str(path)


def numbered(start: int, stop: int) -> Rows:
    return [(f"Sentence number {i}.", i % 2) for i in range(start, stop)]


def ingest_files(
    folder: Path,
    train: list[str],
    holdout: list[str] | None = None,
    reported: list[str] | None = None,
    share: float = 0.2,
    table_format: TableFormat = TableFormat(),  # noqa: B008 (immutable)
    text: Path | str = "",
) -> Dataset:
    sources = Sources(train=train, holdout=holdout or [], secondary=reported or [])
    return ingest(sources, str(folder / "snapshots"), table_format, share, str(text))


def sentences(snapshot: object) -> list[str]:
    assert isinstance(snapshot, dict)
    return read_snapshot(snapshot["path"])["sentence"].tolist()


def test_each_role_has_its_snapshot_and_the_digest_names_them_together(tmp_path: Path) -> None:
    files = [write(tmp_path, numbered(i, i + 5), f"{i}.tsv") for i in (0, 10, 20)]
    data = ingest_files(tmp_path, files[:1], files[1:2], files[2:])
    digests = {}
    for role, file in zip(("train", "holdout", "secondary"), files, strict=True):
        digests[role] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        assert data[role]["digest"] == digests[role]  # type: ignore[literal-required]
        assert data[role]["files"] == [file]  # type: ignore[literal-required]
    assert data["digest"] == json_digest(digests)


def test_digest_depends_on_the_roles_and_not_on_where_the_files_lie(tmp_path: Path) -> None:
    one, other = write(tmp_path, numbered(0, 5), "a.tsv"), write(tmp_path, numbered(5, 9), "b.tsv")
    copy = write(tmp_path / "elsewhere", numbered(0, 5), "c.tsv")
    digest = ingest_files(tmp_path, [one], [other])["digest"]
    assert ingest_files(tmp_path, [copy], [other])["digest"] == digest
    assert ingest_files(tmp_path, [other], [one])["digest"] != digest
    assert ingest_files(tmp_path, [one], [other], [one])["digest"] != digest


def test_no_reported_file_no_reported_snapshot(tmp_path: Path) -> None:
    one, other = write(tmp_path, numbered(0, 5), "a.tsv"), write(tmp_path, numbered(5, 9), "b.tsv")
    assert ingest_files(tmp_path, [one], [other])["secondary"] is None


def test_quarantined_rows_are_part_of_the_digest(tmp_path: Path) -> None:
    """Data that got worse is other data, although the rows that are kept are the same."""
    other = write(tmp_path, numbered(5, 9), "b.tsv")
    texts = ["", "one field\n", "another field\n", "one field\nanother field\n"]
    found = []
    for text in texts:
        train = Path(write(tmp_path, numbered(0, 5), "a.tsv"))
        train.write_text(train.read_text() + text)
        found.append(ingest_files(tmp_path, [str(train)], [other]))
    assert len({data["train"]["digest"] for data in found}) == 1
    assert len({data["digest"] for data in found}) == len(texts)
    train_digest, holdout_digest = found[0]["train"]["digest"], found[0]["holdout"]["digest"]
    assert found[0]["digest"] == json_digest({"train": train_digest, "holdout": holdout_digest})
    quarantined = hashlib.sha256(b"one field\n").hexdigest()
    assert found[1]["digest"] == json_digest(
        {"train": train_digest, "train quarantine": quarantined, "holdout": holdout_digest}
    )


def test_digest_says_in_which_role_rows_were_quarantined(tmp_path: Path) -> None:
    good = [write(tmp_path, numbered(i, i + 5), f"{i}.tsv") for i in (0, 10, 20)]
    digests = {ingest_files(tmp_path, good[:1], good[1:2], good[2:])["digest"]}
    for number in range(3):
        files = list(good)
        files[number] = write(tmp_path, [*numbered(10 * number, 10 * number + 5), ("", 1)], f"bad {number}.tsv")
        digests.add(ingest_files(tmp_path, files[:1], files[1:2], files[2:])["digest"])
    assert len(digests) == 4


def test_quarantined_rows_count_where_a_holdout_is_set_apart(tmp_path: Path) -> None:
    clean, dirty = (
        ingest_files(tmp_path, [write(tmp_path, numbered(0, 300) + bad, name)])
        for bad, name in (([], "a.tsv"), ([("", 1)], "b.tsv"))
    )
    assert [clean[role]["digest"] for role in ("train", "holdout")] == [
        dirty[role]["digest"] for role in ("train", "holdout")
    ]
    assert clean["digest"] != dirty["digest"]
    assert clean["train"]["quarantine_digest"] is dirty["holdout"]["quarantine_digest"] is None
    assert dirty["train"]["quarantine_digest"] is not None


def test_reported_file_without_a_readable_row_is_left_out_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = write(tmp_path, numbered(0, 5), "a.tsv"), write(tmp_path, numbered(5, 9), "b.tsv")
    unread = write(tmp_path, [("", 0), ("", 1)], "c.tsv")
    data = ingest_files(tmp_path, [one], [other], [unread])
    assert data == ingest_files(tmp_path, [one], [other])
    assert [record.getMessage() for record in caplog.records] == [
        f"{unread} has no readable row and is not reported; c.tsv line 1: empty sentence"
    ]
    mended = write(tmp_path, [("", 0), ("Fine.", 1)], "c.tsv")
    reported = ingest_files(tmp_path, [one], [other], [mended])["secondary"]
    assert reported is not None
    assert (reported["kept"], reported["quarantined"]) == (1, 1)


def test_files_without_a_kept_row_are_named_beside_those_with_rows(tmp_path: Path) -> None:
    files = [write(tmp_path, numbered(0, 300)), write(tmp_path, [("", 1)], "bad.tsv")]
    data = ingest_files(tmp_path, files)
    assert (data["train"]["empty_files"], data["holdout"]["empty_files"]) == (["bad.tsv"], [])


def test_merged_rows_keep_their_source_file_and_line(tmp_path: Path) -> None:
    corpus = write(tmp_path, [("One.", 1), ("Two.", 0)], "corpus.tsv", "gj04")
    feedback = write(tmp_path, [("Three.", 1), ("", 0), ("Four.", 0)], "feedback.tsv", "app")
    data = ingest_files(tmp_path, [corpus, feedback], [corpus])
    rows = read_snapshot(data["train"]["path"])
    assert list(zip(rows["file"], rows["line"], rows["source"], rows["sentence"], strict=True)) == [
        ("corpus.tsv", 1, "gj04", "One."),
        ("corpus.tsv", 2, "gj04", "Two."),
        ("feedback.tsv", 1, "app", "Three."),
        ("feedback.tsv", 3, "app", "Four."),
    ]
    assert data["train"]["files"] == [corpus, feedback]
    assert (data["train"]["rows_in"], data["train"]["kept"], data["train"]["quarantined"]) == (5, 4, 1)
    assert data["train"]["examples"] == ["feedback.tsv line 2: empty sentence"]


def test_files_of_several_formats_are_merged_under_one_form(tmp_path: Path) -> None:
    tsv = write(tmp_path, [("One.", 1)])
    table = tmp_path / "table.csv"
    table.write_text("verdict,text\nbad,Two.\n0,Three.\n")
    table_format = TableFormat({"label": "verdict"}, RowRules(labels={"0": 0, "1": 1, "bad": 0}))
    rows = read_snapshot(ingest_files(tmp_path, [tsv, str(table)], [tsv], table_format=table_format)["train"]["path"])
    assert rows["label"].tolist() == [1, 0, 0]
    assert rows["source"].tolist() == ["s", "table", "table"]


# A holdout split off the training rows


def test_a_share_is_split_off_where_no_holdout_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = write(tmp_path, numbered(0, 2000))
    data = ingest_files(tmp_path, [file])
    expected = [text for text, _ in numbered(0, 2000) if hash_fraction(normalise(text), HOLDOUT_HASH_KEY) < 0.2]
    assert sentences(data["holdout"]) == expected
    assert 330 <= len(expected) <= 470  # 400 expected, standard deviation 18
    assert data["holdout"]["files"] == data["train"]["files"] == [file]
    assert f"no holdout file: {len(expected)} of 2000 rows set apart to judge" in caplog.text


def test_nothing_is_split_off_where_a_holdout_is_given(tmp_path: Path) -> None:
    one, other = write(tmp_path, numbered(0, 50), "a.tsv"), write(tmp_path, numbered(50, 60), "b.tsv")
    data = ingest_files(tmp_path, [one], [other], share=0.9)
    assert (data["train"]["kept"], data["holdout"]["kept"]) == (50, 10)


def test_both_sides_are_snapshots_under_their_own_digests(tmp_path: Path) -> None:
    data = ingest_files(tmp_path, [write(tmp_path, numbered(0, 300))])
    for side in (data["train"], data["holdout"]):
        rows = read_snapshot(side["path"])
        text = "".join(f"s\t{row.label}\t\t{row.sentence}\n" for row in rows.itertuples())
        assert side["digest"] == hashlib.sha256(text.encode()).hexdigest()
        assert Path(side["path"]).name == f"{side['digest']}.parquet"
        assert len(rows) == side["kept"]
    assert data["digest"] == json_digest({role: data[role]["digest"] for role in ("train", "holdout")})  # type: ignore[literal-required]


def test_both_sides_have_the_columns_and_types_of_any_snapshot(tmp_path: Path) -> None:
    data = ingest_files(tmp_path, [write(tmp_path, numbered(0, 300))])
    whole = write_snapshot([write(tmp_path, numbered(0, 300))], str(tmp_path / "snapshots"))
    schemas = [next(iter_snapshot(side["path"])).schema for side in (data["train"], data["holdout"], whole)]
    assert schemas[0] == schemas[1] == schemas[2]


def test_what_was_quarantined_is_counted_once(tmp_path: Path) -> None:
    file = write(tmp_path, [*numbered(0, 200), ("", 1), *numbered(200, 300), (" ", 0)])
    data = ingest_files(tmp_path, [file])
    train, holdout = data["train"], data["holdout"]
    assert train["kept"] + holdout["kept"] == 300
    assert train["rows_in"] + holdout["rows_in"] == 302
    for side in (train, holdout):
        assert side["rows_in"] == side["kept"] + side["quarantined"]
    assert (train["quarantined"], train["reasons"]) == (2, {"empty sentence": 2})
    assert train["quarantine"] is not None
    assert train["examples"] == ["mine.tsv line 201: empty sentence", "mine.tsv line 302: empty sentence"]
    assert (holdout["quarantined"], holdout["reasons"], holdout["quarantine"], holdout["examples"]) == (0, {}, None, [])


@unhurried
@given(rows=tables, share=st.floats(0.2, 0.8))
def test_no_row_is_lost_and_no_normalised_sentence_is_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, share: float
) -> None:
    folder = tmp_path_factory.mktemp("apart")
    anchors = numbered(0, 60)  # so that neither side is empty
    whole = write_snapshot([write(folder, anchors + rows)], str(folder))
    train, holdout = split_off_holdout(whole, str(folder), share)
    sides = [read_snapshot(side["path"]) for side in (train, holdout)]
    pd.testing.assert_frame_equal(
        pd.concat([side.astype({"file": str}) for side in sides]).sort_values("line").reset_index(drop=True),
        read_snapshot(whole["path"]).astype({"file": str}),
    )
    assert all(side["line"].is_monotonic_increasing for side in sides)
    normalised = [set(map(normalise, side["sentence"])) for side in sides]
    assert not normalised[0] & normalised[1]


@unhurried
@given(old=tables, new=tables, where=st.sampled_from(["before", "after", "another file"]))
def test_rows_added_later_move_no_old_row(
    tmp_path_factory: pytest.TempPathFactory, old: Rows, new: Rows, where: str
) -> None:
    folder = tmp_path_factory.mktemp("later")
    old = numbered(0, 60) + old
    files = [write(folder, old, source="old")]
    before = ingest_files(folder, files)
    added = write(folder, [*new, ("One more.", 1)], "new.tsv", "new")
    if where == "another file":
        files.append(added)
    else:
        texts = [Path(path).read_text("utf-8") for path in (files[0], added)]
        Path(files[0]).write_text("".join(texts if where == "after" else reversed(texts)), "utf-8")
    after = ingest_files(folder, files)
    for role in ("train", "holdout"):
        rows = [read_snapshot(data[role]["path"]) for data in (before, after)]  # type: ignore[literal-required]
        old_rows = rows[1][rows[1]["source"] == "old"]
        assert old_rows["sentence"].tolist() == rows[0]["sentence"].tolist()
        assert old_rows["label"].tolist() == rows[0]["label"].tolist()


def test_what_is_set_apart_and_what_validates_are_independent_choices(tmp_path: Path) -> None:
    train = read_snapshot(ingest_files(tmp_path, [write(tmp_path, numbered(0, 3000))], share=0.5)["train"]["path"])
    for seed in (0, 2018):
        _, validation, _ = split_rows(train, [], 0.5, seed)
        assert 0.45 < len(validation) / len(train) < 0.55


def test_another_share_sets_apart_more_or_less_of_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, numbered(0, 500))
    small, large = (set(sentences(ingest_files(tmp_path, [file], share=share)["holdout"])) for share in (0.1, 0.3))
    assert small < large


@pytest.mark.parametrize(("rows", "share"), [(1, 0.5), (2, 0.01), (2, 0.99)])
def test_too_few_rows_are_refused_with_what_to_do(tmp_path: Path, rows: int, share: float) -> None:
    file = write(tmp_path, numbered(0, rows) * 100)
    with pytest.raises(DataRejected) as caught:
        ingest_files(tmp_path, [file], share=share)
    assert str(caught.value) == (
        f"{file} has {rows * 100} rows, {rows} different sentence{'s'[rows == 1 :]} among them, "
        f"too few to set a holdout apart; expected at least {math.ceil(50 / share)} different ones, "
        "or a holdout of its own: --holdout FILE"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("good", "bad"), [(0, 1), (0, 2), (1, 2)])
def test_unreadable_rows_are_the_reason_where_most_are_unreadable(tmp_path: Path, good: int, bad: int) -> None:
    file = tmp_path / "mine.tsv"
    file.write_text("s\t1\t\tFine.\n" * good + "Fine,1\n" * bad)
    with pytest.raises(DataRejected) as caught:
        ingest_files(tmp_path, [str(file)])
    (quarantine,) = (tmp_path / "snapshots").glob("quarantine-*.parquet")
    assert str(caught.value) == (
        f"{file}: {bad} of {good + bad} row{'s'[good + bad == 1 :]} cannot be read (mine.tsv line {good + 1}: "
        f"1 field instead of 4; all of them: {quarantine}); expected as many fields in each row as the header has "
        "(in CSV, quote those with a comma), or CoLA's four columns (source, label, mark, sentence), tab-separated"
    )
    assert caught.value.exit_code == 3


def test_too_few_rows_are_the_reason_where_few_are_unreadable(tmp_path: Path) -> None:
    file = write(tmp_path, [("Fine.", 1), ("", 1)])
    with pytest.raises(
        DataRejected, match=r"mine\.tsv has 1 row, too few to set a holdout apart; expected at least 250 different"
    ):
        ingest_files(tmp_path, [file])


def test_several_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    files = [write(tmp_path, [("", 1)], "a.tsv"), write(tmp_path, [("", 0)], "b.tsv")]
    with pytest.raises(DataRejected) as caught:
        ingest_files(tmp_path, files)
    message = str(caught.value)
    assert message.startswith(
        f"{files[0]}, {files[1]}: 2 of 2 rows cannot be read (a.tsv line 1: empty sentence; all of them: "
    )
    assert "\n" not in message


def test_no_scratch_file_stays_behind(tmp_path: Path) -> None:
    ingest_files(tmp_path, [write(tmp_path, numbered(0, 300))])
    with pytest.raises(DataRejected):
        ingest_files(tmp_path, [write(tmp_path, numbered(0, 1))])
    assert {path.suffix for path in (tmp_path / "snapshots").iterdir()} == {".parquet"}


def test_same_rows_give_the_same_data_again(tmp_path: Path) -> None:
    file = write(tmp_path, numbered(0, 300))
    assert ingest_files(tmp_path, [file]) == ingest_files(tmp_path, [file])


def test_several_pieces_are_set_apart_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, numbered(0, 300))
    expected = ingest_files(tmp_path, [file])
    monkeypatch.setattr("tasks.data.ingestion.iter_snapshot", lambda path: iter_snapshot(path, rows=7))
    assert ingest_files(tmp_path, [file]) == expected


# Text without labels


@pytest.fixture
def pair(tmp_path: Path) -> list[list[str]]:
    """A training file and a holdout."""
    return [[write(tmp_path, numbered(0, 5), "train.tsv")], [write(tmp_path, numbered(5, 9), "holdout.tsv")]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.txt", "One sees.\n  Two see. \n"),
        ("mine.jsonl", '{"text": "One sees."}\n{"text": "Two see."}\n'),
        ("mine.csv", "label,sentence\n0,One sees.\n0,Two see.\n"),
    ],
)
def test_text_is_a_snapshot_of_sentences_that_are_called_acceptable(
    name: str, content: str, tmp_path: Path, pair: list[list[str]]
) -> None:
    (tmp_path / name).write_text(content)
    text = ingest_files(tmp_path, *pair, text=tmp_path / name)["text"]
    assert text
    assert [sentence.strip() for sentence in sentences(text)] == ["One sees.", "Two see."]
    assert read_snapshot(text["path"])["label"].tolist() == [1, 1]


def test_the_column_of_a_text_is_that_of_the_data(tmp_path: Path, pair: list[list[str]]) -> None:
    (tmp_path / "mine.csv").write_text("said,sentence\nOne sees.,no\n")
    table_format = TableFormat({"text": "said"})
    text = ingest(Sources(train=pair[0], holdout=pair[1], secondary=[]), str(tmp_path), table_format, 0.2)["text"]
    assert text is None  # the other files are CoLA's own, without a header
    found = ingest_files(tmp_path, *pair, table_format=table_format, text=tmp_path / "mine.csv")["text"]
    assert sentences(found) == ["One sees."]
    (tmp_path / "mine.csv").write_text("what,sentence\nno,Two see.\n")
    found = ingest_files(tmp_path, *pair, table_format=table_format, text=tmp_path / "mine.csv")["text"]
    assert sentences(found) == ["Two see."]  # or else the usual one


def test_other_text_is_other_data(tmp_path: Path, pair: list[list[str]]) -> None:
    path = tmp_path / "mine.txt"
    digests = {ingest_files(tmp_path, *pair)["digest"]}
    for content in ("One sees.\n", "Two see.\n", "One sees.\n \n"):
        path.write_text(content)
        digests.add(ingest_files(tmp_path, *pair, text=path)["digest"])
    assert len(digests) == 4
    assert ingest_files(tmp_path, *pair)["text"] is None


def test_records_of_a_text_without_a_sentence_are_logged_and_left_out(
    tmp_path: Path, pair: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.txt").write_bytes(b"One sees.\n\n\xff\n")
    text = ingest_files(tmp_path, *pair, text=tmp_path / "mine.txt")["text"]
    assert text
    assert (text["kept"], text["quarantined"]) == (1, 2)
    assert "2 of 3 records of the text are left out: mine.txt line 2: " in caplog.text
    assert f"all of them: {text['quarantine']}" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("mine.txt", "", "it is empty"),
        ("mine.csv", "sentence,label\n", "it is empty"),
        ("mine.txt", "\n\n", "mine.txt line 1: "),
    ],
)
def test_text_without_a_sentence_is_refused(
    name: str, content: str, why: str, tmp_path: Path, pair: list[list[str]]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=f"{name} holds no sentence .{why}.*; expected one a line, or a column"):
        ingest_files(tmp_path, *pair, text=tmp_path / name)
