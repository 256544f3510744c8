"""Members of a zip are extracted atomically, and never outside their folder."""

import errno
import os
import random
import re
import stat
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.data import compression
from tasks.data.archives import MAX_LISTED_MEMBERS, extract_member

BODY = random.Random(0).randbytes(200_000)
COLA = {
    "cola/README": b"read me",
    "cola/raw/train.tsv": b"raw train",
    "cola/raw/dev.tsv": b"raw dev",
    "cola/raw/old/train.tsv": b"older",
    "cola/tokenized/train.tsv": b"tokens",
}


def zipped(folder: Path, files: dict[str, bytes], name: str = "z.zip", method: int = zipfile.ZIP_DEFLATED) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w", method) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return str(folder / name)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(kind: type[VerdictError], archive: str, member: str) -> str:
    """Return the message of an error that leaves no file and no folder behind."""
    with pytest.raises(kind) as caught:
        extract_member(archive, member)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    beside = [path for path in Path(archive).parent.iterdir() if path.suffix != ".lock"]
    assert beside in ([Path(archive)], [])
    return str(caught.value)


def test_a_file_is_extracted(tmp_path: Path) -> None:
    path = Path(extract_member(zipped(tmp_path, COLA), "cola/raw/dev.tsv"))
    assert path.name == "dev.tsv"
    assert path.parent.parent == tmp_path
    assert re.fullmatch("[0-9a-f]{32}", path.parent.name)
    assert path.read_bytes() == b"raw dev"
    assert tree(path.parent) == {"dev.tsv": b"raw dev"}


@pytest.mark.parametrize("member", ["cola/raw", "cola/raw/", "./cola/raw", "cola\\raw"])
def test_a_folder_is_extracted_with_the_files_directly_in_it(tmp_path: Path, member: str) -> None:
    path = Path(extract_member(zipped(tmp_path, COLA), member))
    assert path.name == "raw"
    assert tree(path.parent) == {"raw/train.tsv": b"raw train", "raw/dev.tsv": b"raw dev"}


def test_directory_entries_are_no_files(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"data/": b"", "data/deep/": b"", "data/a.tsv": b"a"})
    assert Path(extract_member(archive, "")).name == "a.tsv"
    assert [path.name for path in Path(extract_member(archive, "data")).iterdir()] == ["a.tsv"]


def test_the_top_level_is_extracted_as_files(tmp_path: Path) -> None:
    path = Path(extract_member(zipped(tmp_path, {"a.tsv": b"a", "b.tsv": b"b", "deep/c.tsv": b"c"}), "."))
    assert path.name == "files"
    assert tree(path) == {"a.tsv": b"a", "b.tsv": b"b"}


def test_a_second_call_extracts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path, COLA)
    first = extract_member(archive, "cola/raw")
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert extract_member(archive, "cola/raw") == first


def test_members_of_several_zips_do_not_collide(tmp_path: Path) -> None:
    one, two = zipped(tmp_path, {"a": b"1", "b": b"2"}, "one.zip"), zipped(tmp_path, {"a": b"3"}, "two.zip")
    paths = [extract_member(one, "a"), extract_member(one, "b"), extract_member(two, "a")]
    assert [Path(path).read_bytes() for path in paths] == [b"1", b"2", b"3"]


def test_a_zip_that_changed_is_extracted_again(tmp_path: Path) -> None:
    assert Path(extract_member(zipped(tmp_path, {"a": b"old"}), "a")).read_bytes() == b"old"
    assert Path(extract_member(zipped(tmp_path, {"a": b"new"}), "a")).read_bytes() == b"new"


@pytest.mark.parametrize(
    ("files", "name", "content"),
    [
        ({"data/a.tsv": b"a", "data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
        ({"README": b"r", "data/a.tsv": b"a", "data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
        ({"top/data/a.tsv": b"a", "top/data/b.tsv": b"b"}, "data", {"a.tsv": b"a", "b.tsv": b"b"}),
    ],
)
def test_an_empty_name_means_the_only_folder(
    tmp_path: Path, files: dict[str, bytes], name: str, content: dict[str, bytes]
) -> None:
    path = Path(extract_member(zipped(tmp_path, files), ""))
    assert path.name == name
    assert tree(path) == content


@pytest.mark.parametrize("member", ["a.tsv", "data/a.tsv"])
def test_an_empty_name_means_the_only_file(tmp_path: Path, member: str) -> None:
    archive = zipped(tmp_path, {member: b"a", "__MACOSX/._a.tsv": b"junk", ".DS_Store": b"junk"})
    assert Path(extract_member(archive, "")).read_bytes() == b"a"
    assert extract_member(archive, "") == extract_member(archive, member)


@pytest.mark.parametrize(
    ("files", "there"),
    [
        (
            COLA,
            "'cola/', 'cola/raw/', 'cola/raw/old/', 'cola/tokenized/', 'cola/README', 'cola/raw/dev.tsv', "
            "'cola/raw/old/train.tsv', 'cola/raw/train.tsv' and 1 more",
        ),
        ({"a": b"", "b": b""}, "'./', 'a', 'b'"),
        ({}, "no file"),
    ],
)
def test_an_ambiguous_empty_name_lists_the_members(tmp_path: Path, files: dict[str, bytes], there: str) -> None:
    archive = zipped(tmp_path, files)
    assert refusal(UsageError, archive, "") == (
        f"{archive} holds no single file or folder; it holds {there}; name one of them"
    )


def test_a_missing_member_lists_present_ones(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {f"data/{number:02}.tsv": b"" for number in range(20)})
    there = ", ".join(["'data/'", *(f"'data/{number:02}.tsv'" for number in range(MAX_LISTED_MEMBERS - 1))])
    assert refusal(UsageError, archive, "raw") == (
        f"{archive} holds no member 'raw'; it holds {there} and 13 more; name one of them"
    )


def test_a_folder_without_files_is_no_member(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"top/a/x": b"", "top/b/y": b""})
    assert "holds no member 'top'; it holds 'top/a/', 'top/b/', " in refusal(UsageError, archive, "top")


def test_macos_metadata_is_ignored(tmp_path: Path) -> None:
    files = {"data/a.tsv": b"a", "data/._a.tsv": b"j", "data/.DS_Store": b"j", "__MACOSX/data/._a.tsv": b"j"}
    assert tree(Path(extract_member(zipped(tmp_path, files), "data"))) == {"a.tsv": b"a"}


OUTSIDE = ["../evil", "/evil", "data/../../evil", "..\\evil", "\\evil", "C:\\evil", "C:evil", "data/.."]


def test_names_that_point_outside_are_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    archive = zipped(folder, dict.fromkeys(OUTSIDE, b"evil") | {"data/good": b"good"})
    path = Path(extract_member(archive, "data"))
    assert tree(path.parent) == {"data/good": b"good"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


def test_names_that_point_outside_are_no_members(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a" / "b", dict.fromkeys(OUTSIDE, b"evil") | {"data/good": b"good"})
    for member in [*OUTSIDE, "..", "/", "data/../data"]:
        assert f"holds no member {member!r}; it holds 'data/', 'data/good'; name" in refusal(
            UsageError, archive, member
        )


def test_a_symbolic_link_is_no_member(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"data/good": b"good"})
    link = zipfile.ZipInfo("data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/hosts")
    assert "holds no member 'data/link'" in refusal(UsageError, archive, "data/link")
    assert tree(Path(extract_member(archive, "data"))) == {"good": b"good"}


def test_a_member_with_other_bytes_than_its_checksum_is_refused(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path, {"data/a": b"good", "data/b": b"bytes"}, method=zipfile.ZIP_STORED))
    path.write_bytes(path.read_bytes().replace(b"bytes", b"bites"))
    assert refusal(DataRejected, str(path), "data") == (
        f"{path} is no zip or is damaged (Bad CRC-32 for file 'data/b'); "
        "expected a complete zip; download or copy it again"
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_refused_whatever_the_compression(tmp_path: Path, method: int) -> None:
    path = Path(zipped(tmp_path, {"a": BODY}, method=method))
    raw = path.read_bytes()
    path.write_bytes(raw[:5_000] + bytes(5_000) + raw[10_000:])
    assert "is no zip or is damaged" in refusal(DataRejected, str(path), "a")


@pytest.mark.parametrize("kept_bytes", [0, 1_000, -30])
def test_a_truncated_zip_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = Path(zipped(tmp_path, {"a": BODY}))
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert refusal(DataRejected, str(path), "a") == (
        f"{path} is no zip or is damaged (File is not a zip file); expected a complete zip; download or copy it again"
    )


def test_random_damage_is_refused_or_leaves_the_bytes_intact(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = Path(zipped(tmp_path, COLA))
    raw = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            extracted = extract_member(str(path), "cola/raw")
        except (DataRejected, UsageError) as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["extracted"] += 1
            assert set(tree(Path(extracted)).values()) <= set(COLA.values())
    assert min(outcomes["DataRejected"], outcomes["extracted"]) > 10


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = Path(zipped(tmp_path, {"data/a": b"secret"}))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x03\x04") + 6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert refusal(DataRejected, str(path), "data") == (
        f"{path} is encrypted ('data/a'); expected a zip without password; unpack it manually"
    )


def test_a_missing_zip_is_a_usage_error(tmp_path: Path) -> None:
    archive = str(tmp_path / "none.zip")
    assert refusal(UsageError, archive, "a") == (
        f"zip file '{archive}' does not exist; expected the path of a zip; name another"
    )


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = zipped(tmp_path, COLA)
    monkeypatch.setattr("shutil.copyfileobj", full)
    assert refusal(VerdictError, archive, "cola/raw") == (
        f"{archive} cannot be unpacked beside itself ([Errno 28] No space left on device); "
        "expected a writable folder with free space; free some or copy the zip elsewhere"
    )


def test_concurrent_threads_get_one_folder(tmp_path: Path) -> None:
    archive = zipped(tmp_path, COLA)
    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(lambda _: extract_member(archive, "cola/raw"), range(8)))
    assert tree(Path(path)) == {"train.tsv": b"raw train", "dev.tsv": b"raw dev"}
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [Path(path).parent]


def test_what_a_zip_may_hold_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_EXPANDED", 1 << 20)
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fits.tsv", b"s\t1\t\tA.\n" * 1_000)
        archive.writestr("bomb.tsv", bytes(2 << 20))
    assert Path(extract_member(str(path), "fits.tsv")).stat().st_size == 8_000
    with pytest.raises(DataRejected, match=r"holds more than 1,048,576 bytes in 'bomb.tsv', the limit of a zip"):
        extract_member(str(path), "bomb.tsv")
    assert not list(tmp_path.rglob("bomb.tsv"))
