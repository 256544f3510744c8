"""Addresses become files with a role, and a wrong one says in one line what is there or what to type instead."""

import functools
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import pytest
from cola_like import COLA_DIR, cola_folder
from loopback import running

from tasks.core.errors import DataRejected, UnreachableError, UsageError
from tasks.core.files import sha256_of
from tasks.core.settings import DataSettings
from tasks.core.settings_loader import load_settings
from tasks.data import sources
from tasks.data.sentences import open_source
from tasks.data.sources import (
    ADDRESS_HINT,
    HOLDOUT_FILE,
    SECONDARY_FILE,
    TRAIN_FILE,
    Sources,
    locate_sources,
    locate_text,
    shown_addresses,
)

ROW = "s\t1\t\tA.\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CoLA's three files, below the one where the command runs."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "cola", TRAIN_FILE, HOLDOUT_FILE, SECONDARY_FILE)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(ROW)
    return folder


def file(folder: Path, name: str) -> Path:
    return fill(folder, name) / name


def locate(*addresses: Path | str, train: str = "", holdout: str = "", offline: bool = False) -> Sources:
    return locate_sources([str(address) for address in addresses], train, holdout, "stores", offline=offline)


def refusal(*addresses: Path | str, train: str = "", holdout: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        locate(*addresses, train=train, holdout=holdout)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_folder_is_searched_for_the_names_of_cola(folder: Path) -> None:
    assert locate(folder) == Sources(
        train=[str(folder / "in_domain_train.tsv")],
        holdout=[str(folder / "out_of_domain_dev.tsv")],
        secondary=[str(folder / "in_domain_dev.tsv")],
    )


@pytest.mark.parametrize(
    ("train", "holdout"),
    [
        ("train", "holdout"),
        ("train", "validation"),
        ("train", "test"),
        ("train", "dev"),
        ("in_domain_train", "out_of_domain_dev"),
    ],
)
def test_folder_is_searched_for_the_default_names_in_any_format(tmp_path: Path, train: str, holdout: str) -> None:
    for suffix in (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet", ""):
        folder = fill(tmp_path / f"data{suffix}", f"{train}{suffix}", f"{holdout}{suffix}", "notes.txt")
        expected = [str(folder / f"{name}{suffix}") for name in (train, holdout)]
        assert locate(folder) == Sources(train=expected[:1], holdout=expected[1:], secondary=[]), suffix


def test_names_of_cola_win_over_plain_ones_and_holdout_over_validation_over_test(tmp_path: Path) -> None:
    folder = fill(tmp_path, "train.tsv", TRAIN_FILE, "test.tsv", "validation.csv")
    assert locate(folder)["train"] == [str(folder / TRAIN_FILE)]
    assert locate(folder)["holdout"] == [str(folder / "validation.csv")]
    assert locate(fill(folder, "holdout.jsonl"))["holdout"] == [str(folder / "holdout.jsonl")]
    assert locate(fill(folder, HOLDOUT_FILE))["holdout"] == [str(folder / HOLDOUT_FILE)]


def test_default_names_are_searched_in_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, HOLDOUT_FILE))
    fill(tmp_path / "data", TRAIN_FILE)
    assert "holds no file 'out_of_domain_dev.tsv'" in refusal("data")
    assert locate("data", holdout=HOLDOUT_FILE)["holdout"] == [HOLDOUT_FILE]


def test_home_of_the_user_may_be_written_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    inner = file(folder / "deep", "more.tsv")
    found = locate("~/cola", train="deep/more.tsv", holdout="~/cola/in_domain_dev.tsv")
    assert found["train"] == [str(inner)]
    assert found["holdout"] == [str(folder / SECONDARY_FILE)]


def test_secondary_holdout_may_be_missing(folder: Path) -> None:
    (folder / SECONDARY_FILE).unlink()
    assert locate(folder)["secondary"] == []


@pytest.mark.parametrize("role", ["train", "holdout"])
def test_secondary_holdout_is_left_out_when_it_has_another_role(folder: Path, role: str) -> None:
    found = locate(folder, **{role: SECONDARY_FILE})  # type: ignore[arg-type]
    assert found[role] == [str(folder / SECONDARY_FILE)]  # type: ignore[literal-required]
    assert found["secondary"] == []


def test_secondary_holdout_is_left_out_when_the_judging_file_is_a_link_to_it(folder: Path) -> None:
    (folder / "judge.tsv").symlink_to(folder / SECONDARY_FILE)
    assert locate(folder, holdout="judge.tsv")["secondary"] == []


def test_sample_address_writes_the_bundled_corpus(tmp_path: Path) -> None:
    home = tmp_path / "stores"
    found = locate_sources(["sample"], "", "", str(home))
    assert found == Sources(
        train=[str(home / "sample" / TRAIN_FILE)],
        holdout=[str(home / "sample" / HOLDOUT_FILE)],
        secondary=[],
    )
    assert {path.name for path in (home / "sample").iterdir()} == {TRAIN_FILE, HOLDOUT_FILE}
    assert Path(found["train"][0]).read_text().count("\n") == 4000


def test_nothing_is_written_for_a_folder(folder: Path, tmp_path: Path) -> None:
    locate(folder)
    assert list(tmp_path.iterdir()) == [folder]


# Single files


@pytest.mark.parametrize("name", ["feedback.tsv", "mine.csv", "train.jsonl", "no suffix"])
def test_single_file_trains_and_needs_no_holdout(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, name)
    assert locate(path) == Sources(train=[str(path)], holdout=[], secondary=[])


@pytest.mark.parametrize("name", [HOLDOUT_FILE, "holdout.csv", "validation.parquet", "test.ndjson"])
def test_single_file_with_the_name_of_a_holdout_judges(tmp_path: Path, name: str) -> None:
    mine, judge = file(tmp_path, "mine.tsv"), file(tmp_path, name)
    for addresses in ((mine, judge), (judge, mine)):
        found = locate(*addresses)
        assert (found["train"], found["holdout"]) == ([str(mine)], [str(judge)])


def test_single_file_with_the_name_of_the_reported_holdout_is_reported(tmp_path: Path) -> None:
    found = locate(file(tmp_path, "mine.tsv"), file(tmp_path, SECONDARY_FILE))
    assert (found["train"], found["secondary"]) == ([str(tmp_path / "mine.tsv")], [str(tmp_path / SECONDARY_FILE)])


def test_holdout_alone_does_not_train(tmp_path: Path) -> None:
    path = file(tmp_path, "holdout.tsv")
    assert refusal(path) == (
        f"{path} holds no file 'in_domain_train.tsv' (it holds holdout.tsv); name it: --train FILE"
    )


# Several addresses


def test_addresses_are_merged_role_by_role_in_their_order(folder: Path, tmp_path: Path) -> None:
    feedback = file(tmp_path / "new", "feedback.tsv")
    other = fill(tmp_path / "other", "train.csv", "test.csv")
    assert locate(feedback, folder, other) == Sources(
        train=[str(feedback), str(folder / TRAIN_FILE), str(other / "train.csv")],
        holdout=[str(folder / HOLDOUT_FILE), str(other / "test.csv")],
        secondary=[str(folder / SECONDARY_FILE)],
    )
    assert locate(folder, feedback)["train"] == [str(folder / TRAIN_FILE), str(feedback)]


def test_bundled_corpus_may_be_merged_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    feedback = file(tmp_path, "feedback.tsv")
    found = locate("sample", feedback)
    assert found["train"] == [f"stores/sample/{TRAIN_FILE}", str(feedback)]
    assert found["holdout"] == [f"stores/sample/{HOLDOUT_FILE}"]


def test_folders_without_a_holdout_borrow_that_of_another_address(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "first", "train.tsv"), fill(tmp_path / "second", "train.tsv")
    judge = file(tmp_path, "holdout.tsv")
    assert locate(first, second, judge)["holdout"] == [str(judge)]


def test_one_of_several_addresses_without_a_file_of_use_is_refused(folder: Path, tmp_path: Path) -> None:
    odd = fill(tmp_path / "odd", "corrections.tsv", "notes.md")
    assert refusal(folder, odd) == (
        f"nothing of {odd} is used (it holds corrections.tsv, notes.md); "
        "expected the usual names, or the file's own path: --data FILE"
    )
    assert locate(folder, odd / "corrections.tsv")["train"][1] == str(odd / "corrections.tsv")


def test_file_whose_role_a_named_one_took_is_left_out_and_said_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feedback, judge = file(tmp_path, "feedback.tsv"), file(tmp_path, "holdout.tsv")
    found = locate(folder, feedback, judge, train=TRAIN_FILE, holdout=SECONDARY_FILE)
    assert found["train"] == [str(folder / TRAIN_FILE)]
    assert found["holdout"] == [str(folder / SECONDARY_FILE)]
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing of {path} is used: --train or --holdout names another file" for path in (feedback, judge)
    ]


def test_addresses_that_are_all_used_are_not_talked_about(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = file(fill(tmp_path / "other", "notes.txt") / "deep", "mine.tsv")
    locate(folder, tmp_path / "other", file(tmp_path, SECONDARY_FILE), train="deep/mine.tsv", holdout=HOLDOUT_FILE)
    locate(folder, inner)
    assert caplog.records == []


def test_one_address_may_be_overruled_by_two_named_files(folder: Path, tmp_path: Path) -> None:
    train, judge = file(tmp_path, "a.tsv"), file(tmp_path, "b.tsv")
    found = locate(folder, train=str(train), holdout=str(judge))
    assert (found["train"], found["holdout"]) == ([str(train)], [str(judge)])


# Named files


def test_named_files_may_lie_in_the_folder_or_elsewhere(folder: Path, tmp_path: Path) -> None:
    file(folder, "mine.tsv"), file(tmp_path, "other.tsv")
    found = locate(folder, train="mine.tsv", holdout=str(tmp_path / "other.tsv"))
    assert (found["train"], found["holdout"]) == ([str(folder / "mine.tsv")], [str(tmp_path / "other.tsv")])


def test_named_file_in_the_folder_wins_over_one_where_the_command_runs(folder: Path, tmp_path: Path) -> None:
    file(folder, "mine.tsv"), file(tmp_path, "mine.tsv")
    assert locate(folder, train="mine.tsv")["train"] == [str(folder / "mine.tsv")]


def test_named_file_may_lie_in_a_folder_of_the_folder(folder: Path) -> None:
    inner = file(folder / "older", "train.tsv")
    assert locate(folder, train="older/train.tsv")["train"] == [str(inner)]


def test_named_file_is_not_searched_in_a_folder_that_is_called_as_the_bundled_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "sample", "mine.tsv", "judge.tsv")
    assert refusal("sample", train="mine.tsv") == (
        f"sample holds no file 'mine.tsv' (it holds {TRAIN_FILE}, {HOLDOUT_FILE}); name it: --train FILE"
    )
    feedback = file(tmp_path, "feedback.tsv")
    locate("sample", feedback, train="sample/mine.tsv", holdout="sample/judge.tsv")
    assert [record.getMessage().partition(" is used")[0] for record in caplog.records] == [
        f"nothing of {address}" for address in ("sample", feedback)
    ]


def test_named_file_is_not_searched_below_an_address_that_is_no_folder(
    requested: list[tuple[str, str, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path / "hf:org" / "bare", "mine.tsv")
    assert "holds no file 'mine.tsv'" in refusal("hf:org/bare", train="mine.tsv")
    path = file(tmp_path, "single.tsv")
    assert "holds no file 'mine.tsv'" in refusal(path, train="mine.tsv")


def test_named_file_is_searched_in_every_address(folder: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", "mine.tsv", "holdout.tsv")
    found = locate(folder, other, train="mine.tsv")
    assert found["train"] == [str(other / "mine.tsv")]
    assert found["holdout"] == [str(folder / HOLDOUT_FILE), str(other / "holdout.tsv")]


def test_single_file_may_be_judged_by_a_named_one(folder: Path, tmp_path: Path) -> None:
    mine = file(tmp_path, "mine.tsv")
    assert locate(mine, holdout=str(folder / HOLDOUT_FILE)) == Sources(
        train=[str(mine)], holdout=[str(folder / HOLDOUT_FILE)], secondary=[]
    )


@pytest.mark.parametrize("spelling", [TRAIN_FILE, f"../cola/{TRAIN_FILE}", "link.tsv"])
def test_one_file_for_both_roles_is_refused_however_it_is_spelled(folder: Path, spelling: str) -> None:
    (folder / "link.tsv").symlink_to(folder / TRAIN_FILE)
    assert refusal(folder, holdout=spelling) == (
        f"{folder / TRAIN_FILE} is both training file and holdout; expected two files: --train FILE --holdout FILE"
    )


# What is missing


@pytest.mark.parametrize("addresses", [[], [""], ["", ""]])
def test_no_address_names_the_option_and_the_forms(addresses: list[str]) -> None:
    assert refusal(*addresses) == f"no data given; expected {ADDRESS_HINT}: --data ADDRESS"
    assert ADDRESS_HINT == "a folder, a file, https://...#sha256=HEX, hf:ORG/NAME or sample"


def test_empty_address_among_others_is_not_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert refusal(folder, "").startswith("no data given; expected ")


@pytest.mark.parametrize(
    "address", ["none", "none.tsv", "s3://bucket/data.tsv", "~nobody-of-that-name/x", "x" * 5000, "a\0b"]
)
def test_address_that_is_nowhere_is_named_with_the_forms(address: str) -> None:
    assert refusal(address) == f"data {address!r} does not exist; expected {ADDRESS_HINT}: --data ADDRESS"


@pytest.mark.parametrize("name", ["cola.zip", "cola.ZIP"])
def test_local_zip_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_zip(path, TRAIN_FILE, HOLDOUT_FILE)
    expected = f"data '{path}' is a zip; expected its folder or a file of it: unzip it, then --data ADDRESS"
    assert refusal(path) == expected
    assert refusal(file(tmp_path, "mine.tsv"), path) == expected


def test_folder_may_be_called_as_a_zip(tmp_path: Path) -> None:
    folder = fill(tmp_path / "cola.zip", TRAIN_FILE, HOLDOUT_FILE)
    assert locate(folder)["train"] == [str(folder / TRAIN_FILE)]


def test_a_pipe_and_a_device_are_refused_as_what_is_read_more_than_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in ("/dev/null", str(tmp_path / "pipe.csv")):
        line = f"{path!r} is a pipe or device, and is read more than once; expected a file"
        assert refusal(path) == f"data {line}: --data FILE"
        with pytest.raises(UsageError, match=f"^input {line} of sentences, or - for standard input$"):
            open_source(path)


@pytest.mark.parametrize(("gone", "option"), [(TRAIN_FILE, "--train"), (HOLDOUT_FILE, "--holdout")])
def test_missing_file_is_named_with_what_is_there_and_the_option(folder: Path, gone: str, option: str) -> None:
    (folder / gone).unlink()
    fill(folder, "notes.txt")
    there = ", ".join(sorted({TRAIN_FILE, HOLDOUT_FILE, SECONDARY_FILE, "notes.txt"} - {gone}))
    alone = f", or hold a share out: --data {folder / TRAIN_FILE}" if gone == HOLDOUT_FILE else ""
    assert refusal(folder) == f"{folder} holds no file '{gone}' (it holds {there}); name it: {option} FILE{alone}"


def test_the_only_table_of_a_folder_is_named_by_its_path(tmp_path: Path) -> None:
    folder = fill(tmp_path / "web", "mine.csv")
    assert refusal(folder).endswith(f"(it holds mine.csv); name it: --data {folder / 'mine.csv'}")
    fill(tmp_path / "hub" / "data", "train.csv")
    fill(tmp_path / "hub", "README.md")
    assert refusal(tmp_path / "hub").endswith(f"name it: --train FILE, or --data {tmp_path / 'hub' / 'data'}")


@pytest.mark.parametrize("name", ["nope.tsv", "/no/such/file.tsv", "~nobody-of-that-name/x", "x" * 5000])
def test_named_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    there = f"{SECONDARY_FILE}, {TRAIN_FILE}, {HOLDOUT_FILE}"
    assert refusal(folder, holdout=name) == (
        f"{folder} holds no file {name!r} (it holds {there}); name it: --holdout FILE"
    )


def test_a_link_that_leads_out_of_a_folder_is_followed_only_if_it_is_named(tmp_path: Path) -> None:
    folder, elsewhere = fill(tmp_path / "data", TRAIN_FILE, HOLDOUT_FILE), tmp_path / "elsewhere.tsv"
    train, inside = folder / TRAIN_FILE, folder / "kept.tsv"
    train.rename(inside)
    train.symlink_to(inside.name)
    assert locate(folder)["train"] == [str(train)]
    inside.rename(elsewhere)
    train.unlink()
    train.symlink_to(elsewhere)
    assert refusal(folder) == (
        f"{TRAIN_FILE} of {folder} is a link that leads out of the folder, to {elsewhere}; "
        "expected a file in it, or each file by its own address: --data FILE"
    )
    assert locate(folder, train=TRAIN_FILE)["train"] == [str(train)]
    assert locate(train, folder / HOLDOUT_FILE)["train"] == [str(train)]


def test_empty_folder_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} holds no file '{TRAIN_FILE}' (it holds no file); name it: --train FILE"


# What may be recorded


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host/data.csv#sha256=00", "https://***@host/data.csv#sha256=00"),
        ("http://token@host:8080/a@b.csv", "http://***@host:8080/a@b.csv"),
        ("https://me:p@ss:w@rd@host/data.csv", "https://***@host/data.csv"),
        ("https://host/data.csv?mail=me@home", "https://host/data.csv?mail=***"),
        ("https://host?mail=me@home", "https://host?mail=***"),
        ("/data/me@home/cola", "/data/me@home/cola"),
        ("hf:org/name@main", "hf:org/name@main"),
        ("", ""),
    ],
)
def test_user_names_and_passwords_of_urls_are_not_shown(address: str, shown: str) -> None:
    assert DataSettings(path=address).path == ((shown,) if shown else ())


def test_addresses_are_shown_in_one_line() -> None:
    addresses = ["sample", "https://host/a.csv", "feedback.tsv"]
    assert shown_addresses(addresses) == "sample + https://host/a.csv + feedback.tsv"
    assert shown_addresses([]) == ""


# URLs


class Site(ThreadingHTTPServer):
    """A web server over a folder, on loopback."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        self.folder = folder

    def url(self, name: str) -> str:
        """Return the pinned address of a file."""
        digest = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        return f"{self.bare(name)}#sha256={digest}"

    def bare(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server with single files and zips; the command runs in another folder."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    folder = fill(tmp_path / "site", "mine.tsv", "holdout.tsv", "data.csv")
    (folder / "holdout.tsv").write_text("s\t0\t*\tOther.\n")
    write_zip(folder / "cola.zip", f"raw/{TRAIN_FILE}", f"raw/{HOLDOUT_FILE}", "a+b/train.tsv", "a+b/test.tsv")
    write_zip(folder / "folder.ZIP", f"cola/{TRAIN_FILE}", f"cola/{HOLDOUT_FILE}", f"cola/{SECONDARY_FILE}")
    write_zip(folder / "single.zip", "deep/feedback.tsv")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    server = Site(folder)
    with running(server):
        yield server


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"{name}\t1\t\tA.\n")


def names(files: list[str]) -> list[str]:
    return [Path(name).name for name in files]


def test_url_of_one_file_trains_and_is_kept(site: Site) -> None:
    address = site.url("mine.tsv")
    found = locate(address)
    assert (found["holdout"], found["secondary"]) == ([], [])
    path = Path(found["train"][0])
    digest = address.rpartition("=")[2]
    assert path == Path("stores/downloads") / digest / "mine.tsv"
    assert path.read_text() == ROW


def test_url_of_a_file_with_the_name_of_a_holdout_judges(site: Site) -> None:
    found = locate(site.url("mine.tsv"), site.url("holdout.tsv"))
    assert (names(found["train"]), names(found["holdout"])) == (["mine.tsv"], ["holdout.tsv"])


def test_url_of_a_zip_with_the_name_of_a_folder_in_it(site: Site) -> None:
    found = locate(f"{site.url('cola.zip')}&member=raw")
    assert names(found["train"] + found["holdout"]) == [TRAIN_FILE, HOLDOUT_FILE]
    assert Path(found["train"][0]).read_text() == f"raw/{TRAIN_FILE}\t1\t\tA.\n"


@pytest.mark.parametrize("member", ["a+b", "a%2Bb", "a+b/"])
def test_member_is_read_as_it_is_written(site: Site, member: str) -> None:
    found = locate(f"{site.url('cola.zip')}&member={member}")
    assert names(found["train"] + found["holdout"]) == ["train.tsv", "test.tsv"]


def test_url_of_a_zip_with_the_name_of_a_file_in_it(site: Site) -> None:
    found = locate(f"{site.url('cola.zip')}&member=raw/{TRAIN_FILE}")
    assert (names(found["train"]), found["holdout"]) == ([TRAIN_FILE], [])


def test_only_folder_of_a_zip_needs_no_name(site: Site) -> None:
    found = locate(site.url("folder.ZIP"))
    assert names(found["train"] + found["holdout"] + found["secondary"]) == [TRAIN_FILE, HOLDOUT_FILE, SECONDARY_FILE]


def test_only_file_of_a_zip_needs_no_name_and_trains(site: Site) -> None:
    found = locate(site.url("single.zip"))
    assert (names(found["train"]), found["holdout"]) == (["feedback.tsv"], [])


def test_zip_without_the_default_names_says_what_it_holds(site: Site) -> None:
    write_zip(site.folder / "odd.zip", "x/a.tsv", "x/b.tsv")
    message = refusal(site.url("odd.zip"))
    assert message == (
        f"{site.url('odd.zip')} holds no file '{TRAIN_FILE}' (it holds a.tsv, b.tsv); name it: --train FILE"
    )
    assert names(locate(site.url("odd.zip"), train="a.tsv", holdout="b.tsv")["train"]) == ["a.tsv"]


def test_named_files_may_be_urls(site: Site, folder: Path) -> None:
    found = locate(folder, train=site.url("mine.tsv"), holdout=f"{site.url('cola.zip')}&member=a%2Bb/test.tsv")
    assert (names(found["train"]), names(found["holdout"])) == (["mine.tsv"], ["test.tsv"])


def test_url_and_its_copy_in_the_store_are_one_file(site: Site) -> None:
    address = site.url("mine.tsv")
    assert "is both training file and holdout" in refusal(address, holdout=address)


def test_named_url_of_a_folder_is_no_file(site: Site, folder: Path) -> None:
    address = f"{site.url('cola.zip')}&member=raw"
    assert refusal(folder, train=address).startswith(f"{folder} holds no file {address!r} (it holds ")


@pytest.mark.parametrize("fragment", ["", "#", "#sha256=", "#member=raw", "#abc"])
def test_url_without_a_digest_is_refused_with_the_form(fragment: str) -> None:
    url = "https://host.invalid/data.zip"
    assert refusal(f"{url}{fragment}") == (
        f"address '{url}{fragment}' has no digest; expected {url}#sha256=HEX, for a zip &member=PATH too "
        "(sha256sum of a copy that you trust prints HEX)"
    )


def test_unknown_part_of_the_fragment_is_named() -> None:
    url = "https://host.invalid/data.zip"
    digest = "0" * 64
    message = refusal(f"{url}#sha256={digest}&membr=raw")
    assert message.startswith(
        f"address '{url}#sha256={digest}&membr=raw' has the unknown part 'membr'; expected {url}#"
    )


def test_digest_of_another_file_refuses_the_data(site: Site) -> None:
    with pytest.raises(DataRejected, match="has SHA-256"):
        locate(f"{site.bare('mine.tsv')}#sha256={'0' * 64}")


def test_offline_takes_what_is_kept_and_asks_nobody(site: Site) -> None:
    address = site.url("cola.zip") + "&member=raw"
    with pytest.raises(UnreachableError):
        locate(address, offline=True)
    online = locate(address)
    (site.folder / "cola.zip").unlink()
    assert locate(address, offline=True) == online


# The hub


@pytest.fixture
def requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """Replace the hub by splits on this machine; the list records the requests."""
    calls: list[tuple[str, str, bool]] = []

    def fetch(address: str, cache: str, *, offline: bool = False) -> dict[str, str]:
        calls.append((address, cache, offline))
        splits = {"hf:org/whole": ("train", "validation", "test"), "hf:org/bare": ("train",), "hf:org/odd": ("data",)}
        folder = tmp_path / address.replace("/", "-").replace(":", "-")
        return {split: str(file(folder, f"{split}.parquet")) for split in splits[address]}

    monkeypatch.setattr(sources, "fetch_dataset", fetch)
    return calls


def test_splits_of_the_hub_have_the_default_roles(requested: list[tuple[str, str, bool]]) -> None:
    found = locate("hf:org/whole")
    assert found["secondary"] == []
    assert names(found["train"] + found["holdout"]) == ["train.parquet", "validation.parquet"]
    assert requested == [("hf:org/whole", "stores/downloads/hub", False)]


def test_offline_is_passed_to_the_hub(requested: list[tuple[str, str, bool]]) -> None:
    locate("hf:org/whole", offline=True)
    assert requested == [("hf:org/whole", "stores/downloads/hub", True)]


def test_named_file_may_be_a_split(requested: list[tuple[str, str, bool]]) -> None:
    found = locate("hf:org/whole", train="validation", holdout="test")
    assert names(found["train"] + found["holdout"]) == ["validation.parquet", "test.parquet"]


def test_one_split_for_both_roles_is_refused(requested: list[tuple[str, str, bool]]) -> None:
    assert "is both training file and holdout" in refusal("hf:org/whole", holdout="train")


def test_hub_data_set_may_come_without_a_holdout(requested: list[tuple[str, str, bool]]) -> None:
    assert locate("hf:org/bare")["holdout"] == []


def test_hub_data_set_may_be_merged_with_a_folder(requested: list[tuple[str, str, bool]], folder: Path) -> None:
    found = locate("hf:org/bare", folder)
    assert names(found["train"]) == ["train.parquet", TRAIN_FILE]
    assert names(found["holdout"]) == [HOLDOUT_FILE]


def test_missing_split_is_named_with_those_there_are(requested: list[tuple[str, str, bool]]) -> None:
    assert refusal("hf:org/odd") == (f"hf:org/odd holds no file '{TRAIN_FILE}' (it holds data); name it: --train FILE")
    assert refusal("hf:org/bare", holdout="dev").startswith("hf:org/bare holds no file 'dev' (it holds train)")


def test_the_profiles_of_real_cola_name_bytes_that_cannot_move() -> None:
    """Each address holds a commit and a digest; together they give all three roles by their names."""
    for profile in ("cola", "cola-small"):
        addresses = load_settings(profile, {}, {}).settings.data.path
        urls = [urldefrag(address) for address in addresses]
        assert all(re.search(r"/[0-9a-f]{40}/", url.url) for url in urls)
        assert all(re.match(r"sha256=[0-9a-f]{64}(&|$)", url.fragment) for url in urls)
        names = [url.url.rpartition("/")[2] for url in urls]
        assert names == ["in_domain_train.tsv", "out_of_domain_dev.tsv", "cola_public.zip"]
        assert urls[2].fragment.endswith("/tokenized/in_domain_dev.tsv")


def test_the_cola_profile_takes_its_files_from_the_cache_when_offline(tmp_path: Path) -> None:
    folder = cola_folder(tmp_path)
    files = [folder / "book" / TRAIN_FILE, folder / "book" / HOLDOUT_FILE, folder / "cola_public.zip"]
    addresses = load_settings("cola", {}, {}).settings.data.path
    if not COLA_DIR:  # the digests of our own lines
        addresses = tuple(
            re.sub("sha256=[0-9a-f]+", f"sha256={sha256_of(file)}", address)
            for file, address in zip(files, addresses, strict=True)
        )
    for file in files:
        path = tmp_path / "downloads" / sha256_of(file) / file.name
        path.parent.mkdir(parents=True)
        shutil.copy(file, path)
    found = locate_sources(addresses, "", "", str(tmp_path), offline=True)
    assert [sha256_of(Path(path)) for path in found["train"]] == [sha256_of(folder / "book" / TRAIN_FILE)]
    assert [sha256_of(Path(path)) for path in found["holdout"]] == [sha256_of(folder / "book" / HOLDOUT_FILE)]
    assert [sha256_of(Path(path)) for path in found["secondary"]] == [sha256_of(folder / "tokenized" / SECONDARY_FILE)]


# Text without labels


def test_no_text_is_none() -> None:
    assert locate_text("", "stores") == ""


def test_text_is_a_file_of_sentences(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("One sees.\n")
    assert locate_text(str(path), "stores") == str(path)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("nowhere.txt", "does not exist"),
        (".", "is no file, or its ending tells no format"),
        ("/dev/null", "is no file, or its ending tells no format"),
        ("mine.zip", "is no file, or its ending tells no format"),
        ("sample", "does not exist"),
        ("hf:a/b", "does not exist"),
        ("mine.doc", "is no file, or its ending tells no format"),
        ("mine", "is no file, or its ending tells no format"),
    ],
)
def test_text_that_is_no_file_of_sentences_is_refused_in_one_line(
    address: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.doc", "mine", "mine.zip"):
        (tmp_path / name).write_text("One sees.\n")
    with pytest.raises(UsageError) as caught:
        locate_text(address, "stores")
    expected = f"text {address!r} {fault}; expected a file of sentences (.tsv, .csv, .jsonl, .ndjson, .json, .parquet, "
    expected += ".arrow, .feather, .txt, or .gz)"
    assert str(caught.value) == f"{expected} or https://...#sha256=HEX: --set data.text=ADDRESS"
