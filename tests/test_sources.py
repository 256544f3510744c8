"""Files are found by CoLA's names or by the names given, and a wrong address says what to type instead."""

from pathlib import Path

import pytest

from tasks.errors import WrongUsage
from tasks.sources import HOLDOUT_FILE, REPORTED_FILE, TRAIN_FILE, Sources, locate_sources


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cola"
    path.mkdir()
    for name in (TRAIN_FILE, HOLDOUT_FILE, REPORTED_FILE):
        (path / name).write_text("s\t1\t\tA.\n")
    return path


def locate(address: Path | str, train: str = "", holdout: str = "") -> Sources:
    return locate_sources(str(address), train, holdout, "written-sample")


def refusal(address: Path | str, train: str = "", holdout: str = "") -> str:
    with pytest.raises(WrongUsage) as caught:
        locate(address, train, holdout)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_is_searched_for_the_names_of_cola(folder: Path) -> None:
    assert locate(folder) == Sources(
        address=str(folder),
        train=str(folder / "in_domain_train.tsv"),
        holdout=str(folder / "out_of_domain_dev.tsv"),
        reported=str(folder / "in_domain_dev.tsv"),
    )


def test_reported_holdout_may_be_missing(folder: Path) -> None:
    (folder / REPORTED_FILE).unlink()
    assert locate(folder)["reported"] is None


@pytest.mark.parametrize("role", ["train", "holdout"])
def test_reported_holdout_is_left_out_when_it_has_another_role(folder: Path, role: str) -> None:
    found = locate(folder, **{role: REPORTED_FILE})
    assert found[role] == str(folder / REPORTED_FILE)  # type: ignore[literal-required]
    assert found["reported"] is None


def test_reported_holdout_is_left_out_when_the_judging_file_is_a_link_to_it(folder: Path) -> None:
    (folder / "judge.tsv").symlink_to(folder / REPORTED_FILE)
    assert locate(folder, holdout="judge.tsv")["reported"] is None


def test_named_files_may_lie_in_the_folder_or_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.tsv").touch()
    (tmp_path / "other.tsv").touch()
    found = locate(folder, train="mine.tsv", holdout=str(tmp_path / "other.tsv"))
    assert (found["train"], found["holdout"]) == (str(folder / "mine.tsv"), str(tmp_path / "other.tsv"))


def test_named_file_in_the_folder_wins_over_one_where_the_command_runs(folder: Path, tmp_path: Path) -> None:
    for place in (folder, tmp_path):
        (place / "mine.tsv").touch()
    assert locate(folder, train="mine.tsv")["train"] == str(folder / "mine.tsv")


def test_sample_address_writes_the_bundled_corpus(tmp_path: Path) -> None:
    found = locate_sources("sample", "", "", str(tmp_path / "sample"))
    assert found == Sources(
        address="sample",
        train=str(tmp_path / "sample" / TRAIN_FILE),
        holdout=str(tmp_path / "sample" / HOLDOUT_FILE),
        reported=None,
    )
    assert {path.name for path in (tmp_path / "sample").iterdir()} == {TRAIN_FILE, HOLDOUT_FILE}
    assert Path(found["train"]).read_text().count("\n") == 4000


def test_nothing_is_written_for_a_folder(folder: Path, tmp_path: Path) -> None:
    locate(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_empty_address_names_the_option() -> None:
    assert (
        refusal("") == "no data given; expected a folder with in_domain_train.tsv and out_of_domain_dev.tsv: --data DIR"
    )


def test_missing_folder_is_named_with_the_option(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"data folder {str(tmp_path / 'none')!r} does not exist; expected a folder with in_domain_train.tsv: --data DIR"
    )


def test_a_file_is_no_data_folder(folder: Path) -> None:
    assert "does not exist" in refusal(folder / TRAIN_FILE)


@pytest.mark.parametrize(("gone", "option"), [(TRAIN_FILE, "--train"), (HOLDOUT_FILE, "--holdout")])
def test_missing_file_is_named_with_what_is_there_and_the_option(folder: Path, gone: str, option: str) -> None:
    (folder / gone).unlink()
    (folder / "notes.txt").touch()
    there = ", ".join(sorted({TRAIN_FILE, HOLDOUT_FILE, REPORTED_FILE} - {gone}))
    assert refusal(folder) == f"{folder} holds no file '{gone}' (it holds {there}); name it: {option} FILE"


def test_named_file_that_is_missing_is_named(folder: Path) -> None:
    assert "holds no file 'nope.tsv' (it holds" in refusal(folder, holdout="nope.tsv")


def test_folder_without_tsv_says_so(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    assert refusal(folder) == f"{folder} holds no file '{TRAIN_FILE}' (it holds no .tsv file); name it: --train FILE"


@pytest.mark.parametrize("spelling", [TRAIN_FILE, f"../cola/{TRAIN_FILE}", "link.tsv"])
def test_one_file_for_both_roles_is_refused_however_it_is_spelled(folder: Path, spelling: str) -> None:
    (folder / "link.tsv").symlink_to(folder / TRAIN_FILE)
    assert refusal(folder, holdout=spelling) == (
        f"{folder / TRAIN_FILE} is both training file and holdout; expected two files: --train FILE --holdout FILE"
    )


def test_the_usual_names_are_looked_for_in_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "in_domain_train.tsv").write_text("x\t1\t\tHi.\n")
    (tmp_path / "out_of_domain_dev.tsv").write_text("x\t1\t\tHo.\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongUsage, match=r"holds no file 'out_of_domain_dev\.tsv'"):
        locate_sources("data", "", "", str(tmp_path / "sample"))
    found = locate_sources("data", "", "out_of_domain_dev.tsv", str(tmp_path / "sample"))
    assert found["holdout"] == "out_of_domain_dev.tsv"
